"""The heap and the line against sorted lists."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.indexed_heap import IndexedHeap
from trio_mlxgate.core.ordering import PriorityLine


@given(st.lists(st.one_of(st.integers(-5, 5), st.none(), st.just("pop"))))
def test_heap_is_a_sorted_list_of_arrivals(steps: list[int | str | None]) -> None:
    heap: IndexedHeap[int] = IndexedHeap()
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
        assert len(heap) == len(model)
        assert {key for _, key in model} == {key for key in range(len(steps)) if key in heap}
    assert [heap.pop() for _ in sorted(model)] == [key for _, key in sorted(model)]


def test_heap_refuses_what_it_cannot_do() -> None:
    heap: IndexedHeap[str] = IndexedHeap()
    with pytest.raises(IndexError):
        heap.first()
    with pytest.raises(KeyError):
        heap.remove("a")
    heap.push("a", 1)
    with pytest.raises(ValueError, match="already"):
        heap.push("a", 2)


@given(st.lists(st.one_of(st.integers(-3, 3), st.none(), st.just("take"))))
def test_line_is_strict_priority_then_first_come(steps: list[int | str | None]) -> None:
    line: PriorityLine[int] = PriorityLine()
    model: list[tuple[int, int]] = []
    for item, step in enumerate(steps):
        if isinstance(step, int):
            line.add(item, step)
            model.append((step, item))
        elif model and step is None:
            priority, gone = model.pop(len(model) // 2)
            line.remove(gone, priority)
        elif model:
            assert line.take_first() == min(model)[1]
            model.remove(min(model))
        assert list(line) == [item for _, item in sorted(model)]
        assert len(line) == line.length == len(model)
        assert list(line.sizes().items()) == [(p, sum(q == p for q, _ in model)) for p in sorted({q for q, _ in model})]
        assert sorted(line.heads()) == sorted(min(i for q, i in model if q == p) for p in {q for q, _ in model})
