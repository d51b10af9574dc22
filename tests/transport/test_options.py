"""Where a request's options come from, and which of the places counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_mlxgate import Gate, Priority, RequestOptions, use_options, use_priority
from trio_mlxgate.options import current_options

if TYPE_CHECKING:
    from tests.transport.conftest import Family


class Spy(Gate):
    """A gate that notes what it is asked for."""

    asked: list[tuple[int, float, float]]

    async def acquire_detached(self, priority: int = 100, **options: Any) -> Any:
        self.asked.append((priority, options["max_wait"], options["hold_timeout"]))
        return await super().acquire_detached(priority, **options)


INF = float("inf")


@pytest.fixture
def gate() -> Spy:
    spy = Spy(1)
    spy.asked = []
    return spy


@pytest.mark.parametrize(
    ("extension", "header", "context", "expected"),
    [
        (None, None, {}, (100, INF, INF)),
        ({"priority": 0}, None, {}, (0, INF, INF)),
        (None, "u=1", {}, (0, INF, INF)),
        (None, "u=5, i", {}, (100, INF, INF)),
        (None, None, {"priority": 7}, (7, INF, INF)),
        ({"priority": 3}, "u=6", {"priority": 7}, (3, INF, INF)),
        ({"max_wait": 5.0}, "u=0", {"priority": 7, "hold_timeout": 9.0}, (0, 5.0, 9.0)),
        ({"max_wait": 5.0, "hold_timeout": 2}, None, {"max_wait": 1.0, "hold_timeout": 9.0}, (100, 5.0, 2)),
        (None, "i", {"priority": 7}, (7, INF, INF)),
        (None, 'u="0', {"priority": 7}, (7, INF, INF)),
        (None, "u=9", {"priority": 7}, (7, INF, INF)),
        (RequestOptions(priority=1), "u=9", {}, (1, INF, INF)),
    ],
)
async def test_extension_then_header_then_block(
    family: Family, gate: Spy, extension: Any, header: str | None, context: dict[str, Any], expected: object
) -> None:
    extensions = {} if extension is None else {"mlxgate": extension}
    headers = {} if header is None else {"Priority": header}
    async with family.client(gate) as client:
        with use_options(**context):
            await client.get("/x", headers=headers, extensions=extensions)
    assert gate.asked == [expected]


async def test_the_map_of_urgencies_can_be_replaced(family: Family, gate: Spy) -> None:
    async with family.client(gate, priorities={0: -5, 7: 500}) as client:
        for header in ["u=0", "u=3", "u=7"]:
            await client.get("/x", headers={"Priority": header})
    assert [priority for priority, _, _ in gate.asked] == [-5, 100, 500]


async def test_blocks_nest_field_by_field_and_reach_the_tasks_started_inside() -> None:
    with use_priority(Priority.FOREGROUND):
        with use_options(max_wait=2.0):
            assert current_options() == RequestOptions(priority=0, max_wait=2.0)

            async def child() -> None:
                await trio.lowlevel.checkpoint()
                assert current_options() == RequestOptions(priority=0, max_wait=2.0)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(child)
        assert current_options() == RequestOptions(priority=0)
    assert current_options() == RequestOptions()


def test_bad_options_are_told_at_once() -> None:
    with pytest.raises(TypeError):
        use_priority("high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_wait"), use_options(max_wait=-1):
        pass
    with pytest.raises(TypeError, match="unhashable"), use_options(supersede=["a"]):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="outer_deadline"), use_options(outer_deadline="no"):  # type: ignore[arg-type]
        pass
    assert current_options() == RequestOptions()
