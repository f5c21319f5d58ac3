"""When octets leave: at once for a connection that is alone, in a row for many."""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy import turns as module
from proxy.turns import Turns, turns_of


async def _turn() -> None:
    await asyncio.sleep(0)


def _noting(sent: list[str], name: str) -> Callable[[], None]:
    return lambda: sent.append(name)


async def _crowd(turns: Turns) -> None:
    """Have it see two in one turn."""
    for _ in range(2):
        turns.send(lambda: None)
    await _turn()


async def test_one_that_is_alone_is_sent_at_once() -> None:
    turns, sent = Turns(asyncio.get_running_loop()), list[str]()
    for number in range(3):
        turns.send(_noting(sent, f"turn {number}"))
        assert sent[-1] == f"turn {number}"
        await _turn()
        await _turn()
    assert sent == ["turn 0", "turn 1", "turn 2"]


async def test_those_of_a_crowd_leave_in_a_row_after_two_turns() -> None:
    turns, sent = Turns(asyncio.get_running_loop()), list[str]()
    await _crowd(turns)
    turns.send(_noting(sent, "first"))
    await _turn()
    assert sent == []
    turns.send(_noting(sent, "of the next turn"))
    await _turn()
    assert sent == ["first"]
    await _turn()
    assert sent == ["first", "of the next turn"]


async def test_a_crowd_that_is_gone_is_forgotten() -> None:
    turns, sent = Turns(asyncio.get_running_loop()), list[str]()
    await _crowd(turns)
    for _ in range(module._CROWDED_TURNS):
        turns.send(lambda: None)
        await _turn()
        await _turn()
    turns.send(_noting(sent, "alone"))
    assert sent == ["alone"]


async def test_one_that_fails_holds_up_no_other() -> None:
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    turns, sent = Turns(loop), list[str]()

    def fail() -> None:
        raise RuntimeError("the transport is closed")

    await _crowd(turns)
    turns.send(fail)
    turns.send(_noting(sent, "other"))
    for _ in range(3):
        await _turn()
    assert sent == ["other"]
    assert [str(context["exception"]) for context in told] == ["the transport is closed"]


async def test_all_connections_of_a_loop_share_its_turns() -> None:
    loop = asyncio.get_running_loop()
    assert turns_of(loop) is turns_of(loop)
    other = asyncio.new_event_loop()
    try:
        assert turns_of(other) is not turns_of(loop)
    finally:
        other.close()
