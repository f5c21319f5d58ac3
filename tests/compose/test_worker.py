"""What runs in a process for HTML work, run here without its limits."""

import io
import subprocess
import sys

import pytest

from proxy.compose import html_steps, worker
from proxy.compose.work import FRAME, STEPS, HtmlResult, HtmlWork, frame_sizes, read_result

WORK = HtmlWork(b"<p>x</p>", "utf-8", frozenset(STEPS))


def frames(octets: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    while octets:
        header, raw = frame_sizes(octets[: FRAME.size])
        octets = octets[FRAME.size :]
        found.append((octets[:header], octets[header : header + raw]))
        octets = octets[header + raw :]
    return found


def test_worker_says_that_it_is_ready_then_answers_each_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames of work give two results behind the first word; half a frame ends it."""
    monkeypatch.setattr(worker, "_limit_time", lambda _: None)
    answers = io.BytesIO()
    worker.serve(io.BytesIO(WORK.to_wire() * 2 + b"\0\0"), answers, 2.0)
    ready, *results = frames(answers.getvalue())
    assert ready == (b'{"ready":true}', b"")
    assert [read_result(*each, WORK).text for each in results] == ["x\n", "x\n"]


@pytest.mark.parametrize(
    ("problem", "reason"), [(MemoryError, "memory"), (RecursionError, "crash"), (BaseException, "crash")]
)
def test_what_goes_wrong_is_an_answer(
    problem: type[BaseException], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what native code raises, which need be no Exception."""

    def fail(_: HtmlWork) -> HtmlResult:
        raise problem

    monkeypatch.setattr(html_steps, "html_work", fail)
    assert worker.do(WORK).failed == tuple((step, reason) for step in STEPS)


def test_worker_ends_with_its_input() -> None:
    """A parent that is gone leaves no process behind, and what it had said was frames only."""
    command = [sys.executable, "-m", "proxy.compose.worker", str(2**28), "2"]
    ended = subprocess.run(command, input=WORK.to_wire(), capture_output=True, timeout=30, check=True)
    assert [read_result(*each, WORK).text for each in frames(ended.stdout)[1:]] == ["x\n"]
    assert ended.stderr == b""
