"""
A process that does HTML work, one message after the other, until its input ends.

*Trust:* what comes in is from the process that started it; what it works on is from anyone. So it limits itself before
it reads anything: memory, processor time for each message, and no file or socket can be opened any more, whatever a
message asks native code to fetch. Standard output is for answers only; what others print goes nowhere.

Run as ``python -m proxy.compose.worker MEMORY_OCTETS BUDGET_SECONDS``.
"""

import codecs
import math
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import BinaryIO

from proxy.compose import html_steps
from proxy.compose.work import FRAME, STEPS, HtmlResult, HtmlWork, frame, frame_sizes, read_work
from proxy.mail import encoded_words

READY = frame({"ready": True}, b"")


def serve(source: BinaryIO, answers: BinaryIO, budget_seconds: float) -> None:
    """
    Work until *source* ends.

    Args:
        source: Frames of work.
        answers: Frames of results; a first one says that work can come.
        budget_seconds: Processor time for one message, after which the system ends the process. The one that
            started it does so sooner, by the clock.
    """
    answers.write(READY)
    answers.flush()
    while len(head := source.read(FRAME.size)) == FRAME.size:
        header, raw = frame_sizes(head)
        work = read_work(source.read(header), source.read(raw))
        _limit_time(budget_seconds)
        answers.write(do(work).to_wire())
        answers.flush()


def do(work: HtmlWork) -> HtmlResult:
    """Take the steps; what goes wrong is an answer too."""
    try:
        return html_steps.html_work(work)
    except MemoryError:
        reason = "memory"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        # Native code tells of its own faults by exceptions that are no Exception.
        reason = "crash"
    return HtmlResult(failed=tuple([(step, reason) for step in STEPS if step in work.steps]))


def _limit_time(budget_seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + budget_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def main(memory_octets: int, budget_seconds: float) -> None:
    """Limit this process, then serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    for codec in encoded_words.CODECS:
        codecs.lookup(codec)  # loads a module: later there is no opening files
    html_steps.html_work(HtmlWork(b"<style>p{top:0}</style><p>warm</p>", "utf-8", frozenset(STEPS)))
    source = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # not every system knows this limit; the others hold
        resource.setrlimit(resource.RLIMIT_AS, (memory_octets, memory_octets))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, files[1]))
    try:
        serve(source, answers, budget_seconds)
    except BrokenPipeError:
        pass  # the parent is gone
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
