"""The heap and the line against sorted lists."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.indexed_heap import IndexedHeap
from trio_mlxgate.core.ordering import AgedPlace, AgingLine, PriorityLine, aged_place


@given(st.lists(st.one_of(st.integers(-5, 5), st.none(), st.just("pop"))))
def test_heap_is_a_sorted_list_of_arrivals(steps: list[int | str | None]) -> None:
    heap: IndexedHeap[int, int] = IndexedHeap()
    model: list[tuple[int, int]] = []
    for key, step in enumerate(steps):
        if isinstance(step, int):
            heap.push(key, step)
            model.append((step, key))
        elif model and step is None:
            _, gone = model.pop(len(model) // 2)
            heap.remove(gone)
        elif model:
            first = min(model)
            assert heap.first_rank() == first[0]
            assert heap.first() == first[1] == heap.pop()
            model.remove(first)
        if model and key % 3 == 0:
            # A key whose rank changes keeps its place among equals.
            _, moved = model.pop(len(model) // 2)
            rank = key % 5 - 2
            heap.move(moved, rank)
            model.append((rank, moved))
        assert len(heap) == len(model)
        assert {key for _, key in model} == {key for key in range(len(steps)) if key in heap}
    assert [heap.pop() for _ in sorted(model)] == [key for _, key in sorted(model)]


def test_heap_refuses_what_it_cannot_do() -> None:
    heap: IndexedHeap[str, int] = IndexedHeap()
    with pytest.raises(IndexError):
        heap.first()
    with pytest.raises(KeyError):
        heap.remove("a")
    heap.push("a", 1)
    with pytest.raises(ValueError, match="already"):
        heap.push("a", 2)


@given(st.lists(st.one_of(st.integers(-3, 3), st.none(), st.sampled_from(["take", "take over"]))))
def test_line_is_strict_priority_then_first_come(steps: list[int | str | None]) -> None:
    line: PriorityLine[int] = PriorityLine()
    model: list[tuple[int, int, int]] = []  # priority, place, item
    for item, step in enumerate(steps):
        if isinstance(step, int):
            line.add(item, item, step)
            model.append((step, item, item))
        elif model and step is None:
            priority, place, _ = model.pop(len(model) // 2)
            line.remove(place, priority)
        elif model and step == "take over":
            priority, place, _ = model.pop(len(model) // 2)
            line.take_over(place, item, priority)
            model.append((priority, place, item))
        elif model:
            worst = item % 9 - 4
            first = min(model)
            assert line.take_first_up_to(worst) == (first[2] if first[0] <= worst else None)
            if first[0] > worst:
                assert line.take_first() == first[2]
            model.remove(first)
        assert list(line) == [item for _, _, item in sorted(model)]
        assert len(line) == line.length == len(model)
        priorities = sorted({priority for priority, _, _ in model})
        assert list(line.sizes().items()) == [(p, sum(q == p for q, _, _ in model)) for p in priorities]
        for priority, place, _ in model:
            before = [other for other in model if other[:2] < (priority, place)]
            assert _counted(line.ahead_of(place, priority)) == {
                p: n for p in priorities if (n := sum(other[0] == p for other in before))
            }
        assert sum(line.ahead_of(item + 1, 0).values()) == sum(other[0] <= 0 for other in model)


@given(
    st.sampled_from([0.5, 100.0, 1e9]),
    st.lists(st.integers(-3, 3), max_size=3, unique=True),
    st.lists(st.one_of(st.integers(-3, 3), st.none(), st.sampled_from(["take", "take over"]))),
)
def test_aging_line_is_a_sorted_list_of_places(aging: float, cuts: list[int], steps: list[int | str | None]) -> None:
    line: AgingLine[int] = AgingLine(cuts)
    model: list[tuple[AgedPlace, int, int]] = []  # place, priority, item
    for item, step in enumerate(steps):
        if isinstance(step, int):
            place = aged_place(aging, item, item / 100, step)
            line.add(place, item, step)
            model.append((place, step, item))
        elif model and step is None:
            place, priority, _ = model.pop(len(model) // 2)
            line.remove(place, priority)
        elif model and step == "take over":
            place, priority, _ = model.pop(len(model) // 2)
            line.take_over(place, item, priority)
            model.append((place, priority, item))
        elif model:
            for worst in cuts:
                may = [entry for entry in model if entry[1] <= worst]
                assert line.take_first_up_to(worst) == (min(may)[2] if may else None)
                if may:
                    model.remove(min(may))
            if model:
                assert line.take_first() == min(model)[2]
                model.remove(min(model))
        assert list(line) == [item for _, _, item in sorted(model)]
        assert len(line) == line.length == len(model)
        priorities = sorted({priority for _, priority, _ in model})
        assert list(line.sizes().items()) == [(p, sum(q == p for _, q, _ in model)) for p in priorities]
        for place, priority, _ in model:
            before = [other for other in model if other[0] < place]
            assert _counted(line.ahead_of(place, priority)) == {
                p: n for p in priorities if (n := sum(other[1] == p for other in before))
            }


def _counted(ahead: dict[int, int]) -> dict[int, int]:
    return {priority: count for priority, count in ahead.items() if count}


def test_lines_refuse_what_they_cannot_do() -> None:
    line: PriorityLine[str] = PriorityLine()
    aging: AgingLine[str] = AgingLine()
    for refused in (line.take_first, aging.take_first):
        with pytest.raises(IndexError):
            refused()
    line.add(1, "a", 0)
    aging.add((1.0, 1), "a", 0)
    with pytest.raises(KeyError):
        line.take_over(2, "b", 0)
    with pytest.raises(KeyError):
        aging.take_over((1.0, 2), "b", 0)
    with pytest.raises(KeyError):
        line.remove(2, 0)
    with pytest.raises(KeyError):
        aging.remove((1.0, 2), 0)
    assert (list(line), list(aging)) == (["a"], ["a"])


@given(
    aging=st.floats(1e-3, 1e6),
    later=st.floats(0, 1e7),
    better=st.integers(-(10**6), 10**6),
    worse=st.integers(0, 10**6),
)
def test_who_waits_is_passed_only_by_those_that_come_within_its_window(
    aging: float, later: float, better: int, worse: int
) -> None:
    # Law 13: by how much priorities differ says how much later another may come and still go first.
    window = aging * worse / 100
    waiter = aged_place(aging, 1, 0.0, better + worse)
    newcomer = aged_place(aging, 2, later, better)
    slack = 1e-9 * max(abs(waiter[0]), abs(newcomer[0]), 1.0)
    if later > window + slack:
        assert waiter < newcomer
    if later < window - slack:
        assert newcomer < waiter
