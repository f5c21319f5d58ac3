"""Lines that nobody waits for: told at once, or under load in a row, in order, in time, and none left out."""

import asyncio
from collections.abc import Callable

import pytest

from proxy.record import log as module
from proxy.record.log import Log
from tests.support.picky_stream import PickyStream


class Crowd:
    """
    A log in an event loop with many lines to a turn, whose time passes when it is told to.

    Attributes:
        stream: Where it writes to.
        now: Monotonic seconds.
    """

    def __init__(self, level: str = "info") -> None:
        self.stream = PickyStream()
        self.log = Log(level, "json", self.stream)
        self.now = 1000.0

    def clock(self) -> float:
        """Tell the time."""
        return self.now

    def tell(self, number: int) -> Callable[[], None]:
        """Give what tells a line."""
        return lambda: self.log.info("tested", number=number)

    def numbers(self) -> list[int]:
        """Read what was written since it became a crowd."""
        return [event["number"] for event in self.stream.events() if event["event"] == "tested"]

    async def arrive(self) -> None:
        """Be there."""
        for _ in range(module._FEW_LINES + 1):
            self.log.later(lambda: self.log.info("crowd"))
        await asyncio.sleep(0)
        assert [event["event"] for event in self.stream.events()].count("crowd") % (module._FEW_LINES + 1) == 0

    async def put_off(self, number: int) -> bool:
        """Have a line told, and say whether it was put off."""
        self.log.later(self.tell(number))
        await asyncio.sleep(0)
        return number not in self.numbers()


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    """A log whose lines do not come out by themselves while a test looks."""
    crowd = Crowd()
    monkeypatch.setattr(module, "monotonic", crowd.clock)
    monkeypatch.setattr(module, "_LATER_SECONDS", 60)
    return crowd


async def test_without_load_nothing_is_put_off(crowd: Crowd) -> None:
    """A few in a turn are told when they are, however much else there is to tell."""
    for _ in range(10 * module._FEW_LINES):
        crowd.log.info("started")
    await asyncio.sleep(0)
    for _ in range(5):
        for number in range(module._FEW_LINES):
            told = len(crowd.log._lines)
            crowd.log.later(crowd.tell(number))
            assert len(crowd.log._lines) == told + 1
        await asyncio.sleep(0)
    assert crowd.numbers() == [*range(module._FEW_LINES)] * 5


async def test_under_load_what_nobody_waits_for_is_told_in_a_row(crowd: Crowd) -> None:
    """It waits for a time without other work."""
    await crowd.arrive()
    for number in range(5):
        assert await crowd.put_off(number)
    crowd.log.catch_up()
    await asyncio.sleep(0)
    assert crowd.numbers() == [0, 1, 2, 3, 4]


async def test_what_was_put_off_is_told_though_the_loop_never_rests() -> None:
    """It does not wait for long: ten milliseconds, as the documentation says."""
    assert module._LATER_SECONDS == 0.01
    crowd = Crowd()
    await crowd.arrive()
    for number in range(5):
        crowd.log.later(crowd.tell(number))
    async with asyncio.timeout(5):
        while len(crowd.numbers()) < 5:  # noqa: ASYNC110 - the log has nothing to wait for
            await asyncio.sleep(0)
    assert crowd.numbers() == [0, 1, 2, 3, 4]


async def test_a_time_without_other_work_is_used_at_once(crowd: Crowd) -> None:
    """Whoever knows that the loop has nothing to do says so; what comes behind it has its own time to wait."""
    await crowd.arrive()
    crowd.log.later(crowd.tell(0))
    crowd.log.later(crowd.tell(1))
    waiting = crowd.log._catching_up
    crowd.log.catch_up()
    await asyncio.sleep(0)
    assert crowd.numbers() == [0, 1]
    assert waiting is not None
    assert waiting.cancelled()
    assert await crowd.put_off(2)
    assert crowd.log._catching_up is not waiting


async def test_lines_put_off_stay_in_order_with_all_others_of_the_loop(crowd: Crowd) -> None:
    """What is told at once is told behind what was put off before it."""
    await crowd.arrive()
    crowd.log.later(crowd.tell(0))
    crowd.log.later(crowd.tell(1))
    crowd.log.warning("tested", number=2)
    crowd.log.later(crowd.tell(3))
    crowd.log.flush()
    assert crowd.numbers() == [0, 1, 2, 3]


async def test_a_line_of_another_thread_leaves_the_loop_its_own(crowd: Crowd) -> None:
    """A timer of the loop, and what a session knows, are not for other threads to touch."""
    await crowd.arrive()
    assert await crowd.put_off(0)
    await asyncio.to_thread(crowd.log.warning, "tested", number=1)
    assert crowd.numbers() == [1]
    crowd.log.flush()
    assert crowd.numbers() == [1, 0]


async def test_what_is_put_off_is_bounded(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is much of it, it is told at once."""
    monkeypatch.setattr(module, "_MOST_PUT_OFF", 10)
    await crowd.arrive()
    for number in range(25):
        crowd.log.later(crowd.tell(number))
    await asyncio.sleep(0)
    assert crowd.numbers() == list(range(20))


async def test_load_lasts_as_long_as_many_lines_come_and_a_little_longer(crowd: Crowd) -> None:
    """Lines that were put off keep it up as those told at once do; a few do not."""
    await crowd.arrive()
    for _ in range(3):
        crowd.now += module._BUSY_SECONDS * 0.9
        for number in range(module._FEW_LINES + 1):
            assert await crowd.put_off(number)
        crowd.log.catch_up()
        await asyncio.sleep(0)
        crowd.stream.writes.clear()
    crowd.now += module._BUSY_SECONDS * 0.6
    assert await crowd.put_off(0)
    crowd.log.catch_up()
    await asyncio.sleep(0)
    crowd.now += module._BUSY_SECONDS * 0.6
    assert not await crowd.put_off(1)


async def test_lines_below_the_level_are_no_load(crowd: Crowd) -> None:
    """What is not written puts nothing off."""
    quiet = Crowd("warning")
    for number in range(10 * module._FEW_LINES):
        quiet.log.later(quiet.tell(number))
    quiet.log.warning("told")
    await asyncio.sleep(0)
    quiet.log.later(lambda: quiet.log.warning("tested", number=0))
    await asyncio.sleep(0)
    assert quiet.numbers() == [0]


async def test_one_that_cannot_be_told_costs_no_other(crowd: Crowd) -> None:
    """A slip in what makes a line is told in its place, and is no trouble of who asked for it."""

    def fail() -> None:
        raise RuntimeError("no such field")

    crowd.log.later(fail)
    await asyncio.sleep(0)
    crowd.stream.writes.clear()
    await crowd.arrive()
    crowd.log.later(fail)
    crowd.log.later(crowd.tell(1))
    crowd.log.catch_up()
    await asyncio.sleep(0)
    assert crowd.numbers() == [1]
    (told,) = [event for event in crowd.stream.events() if event["event"] == "internal_error"]
    assert told["task"] == "log"
    assert "no such field" in told["exc"]


async def test_the_end_of_the_program_tells_what_was_put_off(crowd: Crowd) -> None:
    """A reader that stalls is waited for with it, too; and nothing is put off any more."""
    await crowd.arrive()
    for number in range(module._FEW_LINES + 1):
        assert await crowd.put_off(number)
    crowd.stream.script = [None]
    crowd.log.finish()
    assert crowd.numbers() == list(range(module._FEW_LINES + 1))
    await asyncio.sleep(0)
    assert not await crowd.put_off(100)


def test_what_a_loop_left_is_told_in_the_next(crowd: Crowd) -> None:
    """A loop that ended before the time came costs no line, and does not keep the next from telling its own."""

    async def leave() -> None:
        await crowd.arrive()
        crowd.log.later(crowd.tell(0))

    async def go_on() -> None:
        crowd.now += 1
        assert not await crowd.put_off(1)
        await crowd.arrive()
        assert await crowd.put_off(2)
        assert crowd.log._catching_up is not None
        assert not crowd.log._catching_up.cancelled()

    asyncio.run(leave())
    asyncio.run(go_on())
    assert crowd.numbers() == [0, 1]
