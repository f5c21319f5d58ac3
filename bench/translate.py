"""Part ``translate``: the engine alone, a header section and an envelope in, the new header section out."""

import itertools
import json
import textwrap
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from bench.options import Options
from bench.table import Report, Row, Table, at_most, median, number
from proxy import rulebook
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.settings import Settings
from proxy.translate.engine import Engine

_SECTION_FIELDS = 20
_BLOCK_SECONDS = 0.02
_ROUNDS, _BLOCKS = 5, 8
_CUSTOMER = b"100000"
_DIFFERENT = 5000  # messages; more than the engine keeps anything of
_ENVELOPE = Envelope("app@example.com", ("reader@example.net",))

_PLAIN = (
    ("Return-Path", "<app@example.com>"),
    ("From", "Example App <app@example.com>"),
    ("To", "A Reader <reader@example.net>"),
    ("Subject", "=?utf-8?Q?Your_weekly_summary_of_what_happened_=E2=80=93_in_short?="),
    ("Date", "Mon, 02 Mar 2026 08:15:00 +0000"),
    ("Message-ID", "<20260302081500.4711@app.example.com>"),
    ("MIME-Version", "1.0"),
    ("Content-Type", 'multipart/alternative;\r\n boundary="=_part_0123456789abcdef"'),
    ("Content-Transfer-Encoding", "7bit"),
    ("Reply-To", "help@example.com"),
    ("X-Mailer", "example-app 4.2"),
    ("List-Unsubscribe", "<https://example.com/u/0123456789>,\r\n <mailto:unsubscribe@example.com>"),
    ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
    ("List-Id", "Weekly summary <weekly.example.com>"),
    ("Precedence", "bulk"),
    ("Auto-Submitted", "auto-generated"),
    ("References", "<20260223081500.4711@app.example.com>"),
    ("In-Reply-To", "<20260223081500.4711@app.example.com>"),
    ("X-Priority", "3"),
    ("Feedback-ID", "weekly:app:example"),
)
_MAILGUN = (
    ("X-Mailgun-Tag", "weekly-summary"),
    ("X-Mailgun-Track-Opens", "yes"),
    ("X-Mailgun-Track-Clicks", "htmlonly"),
    ("X-Mailgun-Variables", '{"customer": 100000, "plan": "team"}'),
)
_POSTMARK = (
    ("X-PM-Tag", "weekly-summary"),
    ("X-PM-TrackOpens", "true"),
    ("X-PM-TrackLinks", "HtmlAndText"),
    ("X-PM-Message-Stream", "outbound"),
    ("X-PM-Metadata-customer", "100000"),
)


def _smtpapi() -> str:
    """Write an X-SMTPAPI of about 1 KB, folded as clients do it."""
    document: dict[str, Any] = {
        "category": ["weekly-summary", "customers"],
        "filters": {
            "opentrack": {"settings": {"enable": 1}},
            "clicktrack": {"settings": {"enable": 0, "enable_text": False}},
        },
        "unique_args": {
            "customer": _CUSTOMER.decode(),
            **{f"argument_{index:02d}": f"value {index * 7919}" for index in range(23)},
        },
    }
    return "\r\n ".join(textwrap.wrap(json.dumps(document), 72, break_on_hyphens=False))


def _section(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Write a header section of 20 fields, the given ones in the middle."""
    plain = _PLAIN[: _SECTION_FIELDS - len(fields)]
    lines = [f"{name}: {value}\r\n" for name, value in (*plain[:8], *fields, *plain[8:])]
    return "".join(lines).encode("ascii") + b"\r\n"


def measure(options: Options) -> Report:
    """Time the engine with the header fields of several providers: new values in each message, and the same again."""
    engine = rulebook.RuleBook(Settings()).engine
    cases: tuple[tuple[str, tuple[tuple[str, str], ...], float | None], ...] = (
        ("no control fields", (), None),
        ("Mailgun, 4 fields", _MAILGUN, 50.0),
        ("Postmark, 5 fields", _POSTMARK, 50.0),
        ("X-SMTPAPI of 1 KB", (("X-SMTPAPI", _smtpapi()),), 100.0),
    )
    rows: list[Row] = []
    printed: list[list[str]] = []
    for name, fields, goal in cases:
        content = _section(fields)
        group = engine.translate(HeaderSection.split(content), _ENVELOPE).group
        if group != ("weekly-summary" if fields else None):
            raise RuntimeError(f"{name}: the engine gives group {group!r}")
        new = [content.replace(_CUSTOMER, b"%d" % (int(_CUSTOMER) + number)) for number in range(_DIFFERENT)]
        new_times, same_times = _times(engine, new, options), _times(engine, [content], options)
        middle = median(new_times) or 0.0
        rows.append(
            {
                "part": "translate",
                "case": name,
                "octets": len(content),
                "min_us": min(new_times),
                "median_us": middle,
                "same_median_us": median(same_times) or 0.0,
            }
        )
        verdict = "" if goal is None else at_most(middle, goal)
        figures = (number(min(new_times), 1), number(middle, 1), verdict, number(median(same_times), 1))
        printed.append([name, f"{len(content):,}", *figures])
    title = f"Microseconds to split and translate a header section of {_SECTION_FIELDS} fields"
    table = Table(title, ("header section", "octets", "min", "median", "goal (median)", "same again, median"), printed)
    notes = ["a customer's number in the control fields is another one in each message, but for the last column"]
    return Report("translate: the engine alone", options.command("translate"), [table], rows, notes)


def _times(engine: Engine, contents: Sequence[bytes], options: Options) -> list[float]:
    """Give the time of one translation in microseconds, once for each block of some milliseconds."""
    split, translate = HeaderSection.split, engine.translate
    loops, seconds = 1, 0.0
    source = itertools.cycle(contents)
    while True:
        started = perf_counter()
        for content in itertools.islice(source, loops):
            translate(split(content), _ENVELOPE)
        seconds = perf_counter() - started
        if seconds >= _BLOCK_SECONDS:
            break
        loops *= 2
    times: list[float] = []
    for _ in range(options.rounds_or(_ROUNDS) * _BLOCKS):
        started = perf_counter()
        for content in itertools.islice(source, loops):
            translate(split(content), _ENVELOPE)
        times.append((perf_counter() - started) / loops * 1e6)
    return times
