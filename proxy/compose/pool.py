"""
A small pool of processes for HTML work.

*Trust:* the processes run native parsers on what anyone may have written, so they may crash, hang, or answer anything.
Each has limits on memory and time, is ended when a message takes longer than its budget, and is replaced. Whatever
happens to it, the message goes on unchanged, and says which steps failed and why.

A process is started when it is first needed, and kept. No more messages are in work than there are processes; the
others wait in turn, as many and as long as is set.
"""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path

from proxy.compose.steps import Composed, Job, Options, finish, plan, unchanged
from proxy.compose.work import FRAME, HtmlResult, HtmlWork, frame_sizes, read_result

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 20.0
# Then a process is replaced in good time, so that what native code may leak stays below its limit.
_MESSAGES_EACH = 10_000


class _Failed(Exception):
    """The work was not done. The text is one of ``work.REASONS``."""


class _Child:
    """One process and how many messages it has had."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - for the type checker
        self.process = process
        self.input = process.stdin
        self.output = process.stdout
        self.messages = 0

    @property
    def usable(self) -> bool:
        return self.process.returncode is None and not self.output.at_eof() and self.messages < _MESSAGES_EACH

    async def read_frame(self) -> tuple[bytes, bytes]:
        header, raw = frame_sizes(await self.output.readexactly(FRAME.size))
        return await self.output.readexactly(header), await self.output.readexactly(raw)

    async def do(self, work: HtmlWork) -> HtmlResult:
        self.messages += 1
        self.input.write(work.to_wire())
        await self.input.drain()
        return read_result(*await self.read_frame(), work)


class ComposePool:
    """
    Composes messages, the HTML work in processes of its own.

    Args:
        processes: How many, at most.
        budget_seconds: What one message's HTML work may take, by the clock.
        memory_octets: Address space of a process.
        max_waiting: Messages that may wait for a process; one more goes on unchanged.
        wait_seconds: How long one waits, before it goes on unchanged.
    """

    def __init__(
        self,
        processes: int = 2,
        budget_seconds: float = 2.0,
        memory_octets: int = 256 * 1024 * 1024,
        max_waiting: int = 1000,
        wait_seconds: float = 30.0,
    ) -> None:
        self.processes = processes
        self.budget_seconds = budget_seconds
        self.memory_octets = memory_octets
        self.max_waiting = max_waiting
        self.wait_seconds = wait_seconds
        self._turn = asyncio.Semaphore(processes)
        self._waiting = 0
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._starting: set[asyncio.Task[_Child]] = set()
        self._begun: list[asyncio.Task[_Child]] = []  # starts that nobody waits for
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def compose(self, content: bytes, options: Options) -> Composed:
        """
        Take the content steps.

        Args:
            content: As for :func:`proxy.compose.steps.plan`.
            options: Which steps are wanted.

        Returns:
            The composed message; always, however the work ends.
        """
        planned = plan(content, options)
        if not isinstance(planned, Job):
            return planned
        try:
            result = await self._work(planned.work)
        except _Failed as failure:
            return unchanged(content, planned.work.steps, str(failure))
        return finish(planned, result)

    async def close(self) -> None:
        """End all processes, and wait until they are gone. Work that is under way fails."""
        self._closed = True
        for child in list(self._children):
            self._end(child)
        while tasks := {*self._starting, *self._ending}:
            await asyncio.wait(tasks)

    async def _work(self, work: HtmlWork) -> HtmlResult:
        if self._waiting >= self.max_waiting:
            raise _Failed("time")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.wait_seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise _Failed("time") from None
        finally:
            self._waiting -= 1
        try:
            return await self._in_turn(work)
        finally:
            self._turn.release()

    async def _in_turn(self, work: HtmlWork) -> HtmlResult:
        child = await self._child()
        done = False
        try:
            async with asyncio.timeout(self.budget_seconds):
                result = await child.do(work)
            done = True
        except TimeoutError:
            raise _Failed("time") from None
        except (OSError, EOFError, ValueError):
            raise _Failed("crash") from None
        finally:
            # Cancelled, too, a process has an answer left to give that nobody waits for: it must not go on.
            if done and not self._closed:
                self._idle.append(child)
            else:
                self._end(child)
        return result

    async def _child(self) -> _Child:
        """Take an idle process, or start one."""
        while self._idle:
            child = self._idle.pop()
            if child.usable:
                return child
            self._end(child)
        if self._closed:
            raise _Failed("crash")
        # Shielded: a process that is just being started when this is cancelled is for the next message.
        starting = self._begun.pop() if self._begun else self._begin()
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._begun.append(starting)
            raise
        except (OSError, EOFError, ValueError, TimeoutError):
            raise _Failed("crash") from None

    def _begin(self) -> asyncio.Task[_Child]:
        starting = asyncio.create_task(self._start())
        self._starting.add(starting)
        starting.add_done_callback(self._started)
        return starting

    def _started(self, starting: asyncio.Task[_Child]) -> None:
        self._starting.discard(starting)
        if not starting.cancelled():
            starting.exception()  # whoever waits for it gets it too; nobody may

    async def _start(self) -> _Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "proxy.compose.worker",
            str(self.memory_octets),
            str(self.budget_seconds),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=_environment(),
        )
        child = _Child(process)
        self._children.add(child)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await child.read_frame()
            if self._closed:
                raise EOFError
        except BaseException:
            self._end(child)
            raise
        return child

    def _end(self, child: _Child) -> None:
        """End a process; a task sees to it that nothing of it is left."""
        if child in self._children:
            self._children.discard(child)
            task = asyncio.create_task(_ended(child))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


async def _ended(child: _Child) -> None:
    with suppress(ProcessLookupError):
        child.process.kill()
    child.input.close()
    await child.process.wait()


def _environment() -> dict[str, str]:
    """What a process gets of our variables: no settings, for secrets may be among them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMAIL_PROXY_")}
    return kept | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [kept.get("PYTHONPATH")])])}
