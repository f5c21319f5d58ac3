"""
Part ``compose``: the content steps and the signature for messages with 16 KB of HTML, in one process.

One is a real template of the tests (Postmark's receipt, with its own style sheet and few links), one is made here: as
much HTML, more links, and more declarations for each element.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import process_time

from cryptography.hazmat.primitives.asymmetric import rsa

from bench.message import html_message
from bench.options import Options
from bench.table import Report, Row, Table, at_most, median, number
from proxy.compose import steps
from proxy.compose.dkim import Signer, SigningKey
from proxy.compose.tokens import TokenKeys
from proxy.compose.work import STEPS

_HTML_OCTETS = 16_000
_ROUNDS = 5
_TIMES, _QUICK_TIMES = 40, 4
_COMPOSE_GOAL_MS = 5.0
_SIGN_GOAL_MS = 1.5
_TEMPLATE = Path(__file__).parent.parent / "tests" / "compose" / "templates" / "postmark-receipt.html"
_NOW = datetime(2026, 3, 2, 8, 15, tzinfo=UTC)


def measure(options: Options) -> Report:
    """Take the CPU time of each step, over and over."""
    tables: list[Table] = []
    rows: list[Row] = []
    notes = ["the same message over and over, as mail of one template is: what is kept of a style sheet helps"]
    messages = {"made here": html_message(_HTML_OCTETS)}
    if _TEMPLATE.is_file():
        messages[f"template {_TEMPLATE.name}"] = html_message(0, _TEMPLATE.read_text("utf-8"))
    else:
        notes.append(f"{_TEMPLATE.name} skipped: the tests are not here")
    for name, content in messages.items():
        table, more = _measure(name, content, options)
        tables.append(table)
        rows += more
    return Report("compose: content steps and signature", options.command("compose"), tables, rows, notes)


def _measure(name: str, content: bytes, options: Options) -> tuple[Table, list[Row]]:
    keys = TokenKeys(1, {1: b"k" * 32})
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    signer = Signer([SigningKey("example.com", "bench", key)])
    wanted = steps.Options(inline_css=True, track_opens=True, track_clicks=True)

    def url(slot: steps.Slot) -> str:
        if slot.kind == "open":
            return f"https://click.example.com/o/{keys.sign_open('message-1', 0)}"
        return f"https://click.example.com/c/{keys.sign_click('message-1', 0, slot.target)}"

    job = steps.plan(content, wanted)
    if isinstance(job, steps.Composed):
        raise RuntimeError(f"there is nothing to compose: {job.failed}")
    planned = job
    result = steps.html_work(planned.work)
    composed = steps.finish(planned, result)
    if composed.done != STEPS:
        raise RuntimeError(f"of {STEPS} only these were done: {composed.done}; {composed.failed}")
    copy = composed.copy(url)
    work: dict[str, Callable[[], object]] = {
        "plan": lambda: steps.plan(content, wanted),
        "html_work": lambda: steps.html_work(planned.work),
        "finish": lambda: steps.finish(planned, result),
        "copy for a recipient": lambda: composed.copy(url),
        "DKIM, RSA of 2,048 bits": lambda: signer.sign(copy, _NOW),
    }
    times: dict[str, list[float]] = {label: [] for label in work}
    for _ in range(options.rounds_or(_ROUNDS) * (_QUICK_TIMES if options.quick else _TIMES)):
        for label, step in work.items():
            began = process_time()
            step()
            times[label].append((process_time() - began) * 1e3)
    *content_steps, signing = times
    together = [sum(each) for each in zip(*(times[label] for label in content_steps), strict=True)]
    lines: list[tuple[str, list[float], float | None]] = [(label, times[label], None) for label in content_steps]
    lines += [("all content steps", together, _COMPOSE_GOAL_MS), (signing, times[signing], _SIGN_GOAL_MS)]
    rows: list[Row] = []
    printed: list[list[str]] = []
    for label, found, goal in lines:
        middle = median(found) or 0.0
        rows.append({"part": "compose", "message": name, "step": label, "min_ms": min(found), "median_ms": middle})
        verdict = "" if goal is None else at_most(middle, goal)
        printed.append([label, number(min(found), 2), number(middle, 2), verdict])
    size = f"{len(planned.work.html):,} octets of HTML, {len(composed.slots)} URLs"
    title = f"{name}: {size}; leaves with {len(copy):,} octets"
    return Table(title, ("ms of CPU", "min", "median", "goal (median)"), printed), rows
