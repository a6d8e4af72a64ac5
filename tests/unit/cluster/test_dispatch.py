"""Ranks get one task after the other, also ranks that come late, and again what was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rise_ray.cluster.dispatch import Dispatcher

Scene = Callable[[Dispatcher], Awaitable[None]]


def played(scene: Scene) -> None:
    async def play() -> None:
        await asyncio.wait_for(scene(Dispatcher()), timeout=10)

    asyncio.run(play())


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_every_rank_gets_every_task_once_and_the_driver_its_result() -> None:
    async def scene(dispatcher: Dispatcher) -> None:
        early = asyncio.create_task(dispatcher.next(0))
        await settle()
        assert not early.done()
        first = asyncio.create_task(dispatcher.do("first"))
        assert await early == (1, "first")
        assert await dispatcher.next(0) == (1, "first")
        waiting = asyncio.create_task(dispatcher.next(1))
        await settle()
        assert not waiting.done()
        assert not first.done()
        await dispatcher.done("one")
        assert await first == ("one", 2)
        second = asyncio.create_task(dispatcher.do("second"))
        assert await waiting == (2, "second")
        assert await dispatcher.next(1) == (2, "second")
        await dispatcher.done("two")
        assert await second == ("two", 2)

    played(scene)


def test_a_rank_that_starts_again_gets_what_is_not_done_and_is_counted() -> None:
    async def scene(dispatcher: Dispatcher) -> None:
        task = asyncio.create_task(dispatcher.do("task"))
        await settle()
        assert await dispatcher.next(0) == await dispatcher.next(0) == (1, "task")
        await dispatcher.done("result")
        assert await task == ("result", 2)
        late = asyncio.create_task(dispatcher.next(0))
        await settle()
        assert not late.done()  # what is done is not done again
        asyncio.create_task(dispatcher.do("next"))  # noqa: RUF006
        assert await late == (2, "next")

    played(scene)


@pytest.mark.parametrize("after", [0, 1])
def test_no_rank_waits_for_a_task_that_will_not_come(after: int) -> None:
    async def scene(dispatcher: Dispatcher) -> None:
        waiting = asyncio.create_task(dispatcher.next(after))
        await settle()
        await dispatcher.close()
        assert await waiting is None
        assert await dispatcher.next(after) is None

    played(scene)


def test_signs_of_life_are_counted() -> None:
    async def scene(dispatcher: Dispatcher) -> None:
        await dispatcher.beat()
        await dispatcher.beat()
        assert await dispatcher.count() == 2

    played(scene)
