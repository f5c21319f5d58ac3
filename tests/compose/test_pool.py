"""The processes for HTML work: what a message can do to them, and that no message, process or descriptor is lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy.compose.pool import ComposePool
from proxy.compose.steps import Composed
from proxy.compose.work import STEPS
from tests.compose.support import ALL, NOTHING, TEMPLATES, compose, message, template, url

HTML = '<style>p{color:red}</style><body><p>Hi <a href="https://x.invalid/">you</a></p></body>'
BUDGET = 2.0

BOMBS = {
    "100,000 nested tags": b"<b>" * 100_000,
    "100,000 closed tags": b"<i>" * 100_000 + b"</i>" * 100_000,
    "5,000 nested tables": b"<table><tr><td>" * 5000,
    "50,000 nested div": b"<div>" * 50_000,
    "unclosed quotes": b"<a href=\"x'" * 20_000,
    "sibling selectors": b"<style>" + b"a~" * 19_000 + b"a{color:red}</style>" + b"<a></a>" * 2000,
    "many sibling selectors": b"<style>" + b"a~a~a~a~a~b{top:0}" * 2100 + b"</style>" + b"<a></a>" * 5000,
    "nested negations": b"<style>" + b"a:not(b)" * 4700 + b"{top:0}</style>" + b"<a></a>" * 2000,
    "has": b"<style>" + b":has(:has(* *)~*)," * 1000 + b"a{top:0}</style>" + b"<a></a>" * 2000,
    "colspan of ten million": b"<table><tr><td colspan=10000000 rowspan=10000000>a<td>b<tr><td>c<td>d</table>",
    "colspan of a thousand": b"<table>" + b"<tr><td colspan=99 rowspan=65534>a<td>b<tr><td>c<td>d" * 90 + b"</table>",
    "unclosed tags": b"<a " * 100_000,
    "unclosed comments": b"<!--" * 75_000,
    "misnested formatting": b"<b><p>" * 60 + b"</b>x" * 20_000,
    "reopened formatting": b"<p><b><i><u></p>" * 80 + b"<p>x" * 20_000,
    "attributes": b"<p " + b" ".join([f"a{n}=1".encode() for n in range(50_000)]) + b">",
    "links": b"<a href=http://x.invalid/>x</a>" * 9_000,
    "custom properties": b"<style>p{" + "".join([f"--a{n}:var(--a{n + 1});" for n in range(9000)]).encode() + b"}",
    "a rule for each element": "".join(
        [f"<style>.c{n}{{top:0}}</style>" for n in range(4000)] + [f"<p class=c{n}>" for n in range(4000)]
    ).encode(),
    "select": b"<select>" * 30_000,
    "svg": b"<svg><foreignObject>" * 20_000,
    "frameset": b"<frameset><frame>" * 30_000,
    "template": b"<template>" * 30_000,
    "entities": b"&lt;&#x1F600;&CounterClockwiseContourIntegral;" * 30_000,
    "spaces": b"<p>" + b" \xc2\xa0\xe2\x80\x8c" * 60_000,
    "one long word": b"<p>" + b"a" * 1_900_000,
    "nested lists": b"<ul><li>" * 120 + b"x",
    "nul": b"\0" * 300_000,
}  # fmt: skip


@pytest.fixture
async def pools() -> AsyncIterator[Callable[..., ComposePool]]:
    """Make pools that are closed at the end, whatever happens."""
    made: list[ComposePool] = []

    def make(**settings: float) -> ComposePool:
        made.append(ComposePool(**settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


def pids(pool: ComposePool) -> list[int]:
    return [child.process.pid for child in pool._children]


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def status(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def descriptors(pid: int | str = "self") -> int:
    folder = Path(f"/proc/{pid}/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def failed(composed: Composed) -> set[str]:
    return {reason for _, reason in composed.failed}


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to it")


async def test_pool_gives_what_the_steps_give(pools: Callable[..., ComposePool]) -> None:
    """The process does the same as the pure steps, and is kept for the next message."""
    pool = pools()
    for path in TEMPLATES:
        content = message(template(path))
        assert await pool.compose(content, ALL) == compose(content)
    assert len(pids(pool)) == 1


async def test_messages_without_html_work_start_no_process(pools: Callable[..., ComposePool]) -> None:
    """Plain messages cost nothing."""
    pool = pools()
    assert (await pool.compose(b"From: a@x.invalid\r\n\r\nx\r\n", ALL)).done == ()
    assert (await pool.compose(message(HTML), NOTHING)).done == ()
    assert pids(pool) == []


@pytest.mark.parametrize("name", BOMBS)
async def test_html_bomb_comes_out_in_time_and_the_next_message_is_served(
    name: str, pools: Callable[..., ComposePool]
) -> None:
    """Within its budget, either unchanged with a reason, or with reported edits only."""
    pool = pools(processes=1, budget_seconds=BUDGET)
    await pool.compose(message(HTML), ALL)  # so that no start is measured
    content = message(BOMBS[name], "8bit")
    async with asyncio.timeout(BUDGET + 20):  # a busy machine is late; one that does not stop the work never comes back
        composed = await pool.compose(content, ALL)
    if composed.failed:
        assert [step for step, _ in composed.failed] in ([*STEPS], ["inline_css"])
    if not composed.done:
        assert composed.copy(url) == content
    assert len((await pool.compose(message(HTML), ALL)).done) == 4


async def test_bombs_at_once_leave_room_for_others(pools: Callable[..., ComposePool]) -> None:
    """A message behind two that use up their budgets waits for them, and no longer."""
    pool = pools(processes=2, budget_seconds=1.5)
    await asyncio.gather(*[pool.compose(message(HTML), ALL) for _ in range(2)])
    for pid in pids(pool):
        os.kill(pid, signal.SIGSTOP)
    results = await asyncio.gather(*[pool.compose(message(HTML), ALL) for _ in range(6)])
    assert [failed(composed) for composed in results] == [{"time"}, {"time"}, set(), set(), set(), set()]


async def test_process_that_hangs_is_replaced(pools: Callable[..., ComposePool]) -> None:
    """Over budget the message goes on unchanged, says so, and the process is gone."""
    pool = pools(processes=1, budget_seconds=1.5)
    await pool.compose(message(HTML), ALL)
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGSTOP)
    composed = await pool.compose(message(HTML), ALL)
    assert composed.copy(url) == message(HTML)
    assert composed.failed == tuple((step, "time") for step in STEPS)
    await until(lambda: not is_there(pid))
    assert len((await pool.compose(message(HTML), ALL)).done) == 4


async def test_process_that_dies_is_replaced(pools: Callable[..., ComposePool]) -> None:
    """Killed in the middle of a message, or while it had nothing to do: a new one does the message."""
    pool = pools(processes=1, budget_seconds=20)
    await pool.compose(message(HTML), ALL)
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGSTOP)
    working = asyncio.create_task(pool.compose(message(HTML), ALL))
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    assert len((await working).done) == 4
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGKILL)
    assert len((await pool.compose(message(HTML), ALL)).done) == 4
    assert len(pids(pool)) == 1


async def test_message_that_ends_a_new_process_goes_on_unchanged(
    pools: Callable[..., ComposePool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is no second try with a message that crashed a process started for it."""
    program = tmp_path / "python"
    ready = r"\000\000\000\002\000\000\000\000{}"
    program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/started\nprintf '{ready}'\nhead -c 1 >/dev/null\n")
    program.chmod(0o700)
    pool = pools()
    monkeypatch.setattr("sys.executable", str(program))
    composed = await pool.compose(message(HTML, "8bit"), ALL)
    assert failed(composed) == {"crash"}
    assert composed.copy(url) == message(HTML, "8bit")
    assert (tmp_path / "started").read_text() == "x\n"


async def test_memory_of_a_process_is_limited(pools: Callable[..., ComposePool]) -> None:
    """A message that takes too much goes on unchanged, and the next is served."""
    pool = pools(processes=1, memory_octets=96 * 1024 * 1024, budget_seconds=20)
    composed = await pool.compose(message(b"<p a=1>" * 280_000, "8bit"), ALL)
    assert failed(composed) <= {"memory", "crash"}
    assert composed.failed
    assert len((await pool.compose(message(HTML), ALL)).done) == 4


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
async def test_process_has_limits_and_none_of_our_settings(
    pools: Callable[..., ComposePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot open a file or a socket, writes no core, and does not know our secrets."""
    monkeypatch.setenv("CMAIL_PROXY_RELAY__PASSWORD", "secret")
    pool = pools()
    await pool.compose(message(HTML), ALL)
    (pid,) = pids(pool)
    limits = status(pid, "limits").decode()
    rows = {row[:25].strip(): row[25:46].strip() for row in limits.splitlines()}
    assert rows["Max open files"] == "0"
    assert rows["Max core file size"] == "0"
    assert rows["Max address space"] == str(256 * 1024 * 1024)
    assert rows["Max cpu time"] != "unlimited"
    assert b"secret" not in status(pid, "environ")
    assert descriptors(pid) == 5  # three times nowhere, input, output


async def test_nothing_a_message_links_to_is_read(pools: Callable[..., ComposePool], tmp_path: Path) -> None:
    """Style sheets behind http:// and file:// addresses are neither fetched nor read, however they are linked."""
    secret = tmp_path / "secret.css"
    secret.write_text("p { font-family: top-secret }")
    requests = 0

    def asked(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Awaitable[None]:
        nonlocal requests
        requests += 1
        writer.close()
        return asyncio.sleep(0)

    server = await asyncio.start_server(asked, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    addresses = [f"{base}/a.css", secret.as_uri(), str(secret), f"file:{secret}", "a.css"]
    links = "".join(
        [
            f'<link rel=stylesheet href="{address}"><LINK REL="alternate StyleSheet" HREF={address}>'
            f'<style>@import "{address}"; @import url({address}); q{{background:url({address})}}</style>'
            f'<img src="{address}"><object data="{address}"></object><iframe src="{address}"></iframe>'
            for address in addresses
        ]
    )
    html = f'<base href="{base}/">{links}<style>p{{color:red}}</style><p>x</p><q>y</q>'
    async with server:
        composed = await pools().compose(message(html, "8bit"), ALL)
    assert requests == 0
    assert composed.html.count(b'<p style="color: red">') == 1
    assert b"top-secret" not in composed.copy(url)


async def test_cancelled_message_costs_one_process(pools: Callable[..., ComposePool]) -> None:
    """A process with an answer nobody waits for is ended; a cancelled start is kept for the next message."""
    pool = pools(processes=1)
    starting = asyncio.create_task(pool.compose(message(HTML), ALL))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert len((await pool.compose(message(HTML), ALL)).done) == 4
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGSTOP)
    working = asyncio.create_task(pool.compose(message(HTML), ALL))
    await asyncio.sleep(0.05)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await until(lambda: not is_there(pid))
    assert len((await pool.compose(message(HTML), ALL)).done) == 4


async def test_waiting_is_bounded(pools: Callable[..., ComposePool]) -> None:
    """More messages than may wait, and those that wait too long, go on unchanged."""
    pool = pools(processes=1, max_waiting=2, wait_seconds=0.2, budget_seconds=1.5)
    await pool.compose(message(HTML), ALL)
    os.kill(pids(pool)[0], signal.SIGSTOP)
    async with asyncio.timeout(30):
        results = await asyncio.gather(*[pool.compose(message(HTML), ALL) for _ in range(5)])
    assert [failed(composed) for composed in results] == [{"time"}] * 5
    assert len((await pool.compose(message(HTML), ALL)).done) == 4


async def test_closed_pool_leaves_no_process_and_no_descriptor(pools: Callable[..., ComposePool]) -> None:
    """Idle, working and starting processes are gone when close returns, and later messages go on unchanged."""
    before = descriptors()
    pool = pools(processes=2)
    await pool.compose(message(HTML), ALL)
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGSTOP)
    tasks = [asyncio.create_task(pool.compose(message(HTML), ALL)) for _ in range(4)]
    await asyncio.sleep(0.02)
    await pool.close()
    assert not is_there(pid)
    assert [failed(composed) for composed in await asyncio.gather(*tasks)] == [{"crash"}] * 4
    assert failed(await pool.compose(message(HTML), ALL)) == {"crash"}
    await pool.close()
    assert pids(pool) == []
    await asyncio.sleep(0.05)
    assert descriptors() <= before


async def test_process_that_cannot_start_costs_no_message(
    pools: Callable[..., ComposePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a working interpreter every message goes on unchanged."""
    pool = pools()
    for program in ("/nonexistent", "/bin/true"):
        monkeypatch.setattr("sys.executable", program)
        composed = await pool.compose(message(HTML), ALL)
        assert failed(composed) == {"crash"}
        assert composed.copy(url) == message(HTML)


async def test_many_messages_at_once_come_out_each_as_its_own(pools: Callable[..., ComposePool]) -> None:
    """Answers are never mixed up between messages."""
    pool = pools(processes=2)
    results = await asyncio.gather(*[pool.compose(message(f"<p>number {n}</p>"), ALL) for n in range(200)])
    for number, composed in enumerate(results):
        assert composed.done == ("text_part", "track_opens")
        assert f"number {number}\r\n".encode() in composed.head
    assert len(pids(pool)) == 2
