"""
Each row of the provider fact sheet's table of test vectors (its section 14), by number.

A row gives the fields of a message and what they become: group, opens, clicks, inline CSS; ``None`` where nothing is
emitted. Each runs with the platform's defaults and with the provider's, which fill in what is ``None``.
"""

import json
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from proxy.translate.model import Action
from tests.translate.drive import (
    CLICKS,
    CSS,
    FIVE,
    GROUP,
    OPENS,
    PROVIDER_DEFAULTS,
    engine,
    kinds,
    run,
    shipped,
    values,
)

Expected = tuple[str | None, str | None, str | None, str | None]

LONG = {
    "unique_args": {f"key{number}": "v" * number for number in range(12)},
    "category": "quarterly,report",
    "filters": {"opentrack": {"settings": {"enable": 0}}, "clicktrack": {"settings": {"enable": "1"}}},
}


def modern(name: str, value: str) -> bytes:
    """The field as Python's modern policy folds and encodes it, without its last CRLF."""
    message = EmailMessage(policy=SMTP)
    message[name] = value
    return message.as_bytes().partition(b"\r\n\r\n")[0]


def words(name: str, value: str, charset: str, length: int = 75) -> bytes:
    """The field as Python's old policy writes a value outside ASCII, in words of at most *length*."""
    encoded = Header(value, charset, maxlinelen=length).encode(linesep="\r\n")
    return f"{name}: {encoded}".encode("ascii")


ROWS: dict[str, tuple[list[str | bytes], Expected]] = {
    "01-comma-list-with-empty-items": (["X-MC-Tags:  , welcome ,  new user"], ("welcome", None, None, None)),
    "02-reserved-tag-skipped": (["X-MC-Tags: _internal,signup"], ("signup", None, None, None)),
    "03-allow-list-opens": (["X-MC-Track: opens"], (None, "true", "false", None)),
    "04-allow-list-none": (["X-MC-Track: none"], (None, "false", "false", None)),
    "04-allow-list-empty": (["X-MC-Track:"], (None, "false", "false", None)),
    "04-allow-list-noclicks": (["X-MC-Track: noclicks"], (None, "false", "false", None)),
    "05-allow-list-odd-case": (["X-MC-Track: clicks_htmlonly, Opens"], (None, "true", "true", None)),
    "06-tag-is-no-list": (["X-Mailgun-Tag: a, b", "X-Mailgun-Tag: c"], ("a, b", None, None, None)),
    "07-specific-beats-general": (["X-Mailgun-Track: yes", "X-Mailgun-Track-Opens: no"], (None, "false", "true", None)),
    "08-htmlonly": (["X-Mailgun-Track-Clicks: htmlonly"], (None, None, "true", None)),
    "09-campaign-alone": (["X-Mailgun-Campaign-Id: fy1k"], ("fy1k", None, None, None)),
    "10-mailjet-1": (["X-Mailjet-TrackOpen: 1"], (None, "true", None, None)),
    "10-mailjet-0": (["X-Mailjet-TrackOpen: 0"], (None, "false", None, None)),
    "10-mailjet-2": (["X-Mailjet-TrackOpen: 2"], (None, "true", None, None)),
    "11-wrong-name": (["X-MJ-TrackClicks: 0"], (None, None, "false", None)),
    "12-none": (["X-PM-TrackLinks: None"], (None, None, "false", None)),
    "12-htmlandtext": (["X-PM-TrackLinks: htmlandtext"], (None, None, "true", None)),
    "12-textonly": (["X-PM-TrackLinks: TextOnly"], (None, None, "false", None)),
    "13-wrong-spelling": (["X-PM-Track-Opens: false"], (None, "false", None, None)),
    "14-tag-is-no-list": (["X-PM-Tag: orders, eu"], ("orders, eu", None, None, None)),
    "15-text": (['X-SMTPAPI: {"category":"x"}'], ("x", None, None, None)),
    "15-list": (['X-SMTPAPI: {"category":["x","y"]}'], ("x", None, None, None)),
    "15-empty-list": (['X-SMTPAPI: {"category":[]}'], (None, None, None, None)),
    "15-empty-text": (['X-SMTPAPI: {"category":""}'], (None, None, None, None)),
    "15-first-that-is-not-empty": (['X-SMTPAPI: {"category":["",null,"z"]}'], ("z", None, None, None)),
    "15-number": (['X-SMTPAPI: {"category":7}'], ("7", None, None, None)),
    "16-number": (
        ['X-SMTPAPI: {"filters":{"clicktrack":{"settings":{"enable":0}}}}'],
        (None, None, "false", None),
    ),
    "16-text": (
        ['X-SMTPAPI: {"filters":{"clicktrack":{"settings":{"enable":"0"}}}}'],
        (None, None, "false", None),
    ),
    "16-truth-value": (
        ['X-SMTPAPI: {"filters":{"clicktrack":{"settings":{"enable":false}}}}'],
        (None, None, "false", None),
    ),
    "17-modern-policy": (
        [modern("X-SMTPAPI", json.dumps(LONG, separators=(",", ":")))],
        ("quarterly,report", "false", "true", None),
    ),
    "18-empty-first-line": ([b'X-SMTPAPI: \r\n {"category": "x"}'], ("x", None, None, None)),
    "19-cut-inside-a-string": ([b'X-SMTPAPI: {"category": "wel\r\n come"}'], ("wel come", None, None, None)),
    "19-cut-inside-a-literal": (
        [b'X-SMTPAPI: {"category":"x","filters":{"opentrack":{"settings":{"enable":tr\r\n ue}}}}'],
        (None, None, None, None),
    ),
    "20-broken": (["X-SMTPAPI: {bad"], (None, None, None, None)),
    "21-two-fields": (
        ['X-SMTPAPI: {"category":"first"}', 'X-SMTPAPI: {"category":"second","filters":{}}'],
        ("first", None, None, None),
    ),
    "22-utf-8": ([words("X-PM-Tag", "r\u00e9sum\u00e9", "utf-8")], ("r\u00e9sum\u00e9", None, None, None)),
    "22-iso-8859-1": ([words("X-PM-Tag", "r\u00e9sum\u00e9", "iso-8859-1")], ("r\u00e9sum\u00e9", None, None, None)),
    "22-one-long-word": (
        [words("X-PM-Tag", "\u017c" * 60, "utf-8", length=1000)],
        ("\u017c" * 60, None, None, None),
    ),
    "23-native-field-wins": (["X-Cmail-TrackOpens: true", "X-PM-TrackOpens: false"], (None, None, None, None)),
    "24-two-providers": (["X-Mailgun-Tag: a", "X-MC-Tags: b"], ("a", None, None, None)),
    "25-lower-case": (["x-pm-tag: a"], ("a", None, None, None)),
    "25-nodemailer": (["X-Pm-Tag: a"], ("a", None, None, None)),
    "25-capitals": (["X-PM-TAG: a"], ("a", None, None, None)),
    "26-other-recipients": (['X-SMTPAPI: {"to":["x@example.com"],"category":"c"}'], ("c", None, None, None)),
    "27-test-mode": (["X-Mailgun-Drop-Message: yes"], (None, None, None, None)),
    "28-twenty-six-recipients": (["X-PM-Tag: a"], ("a", None, None, None)),
    "29-switched-off": (
        ['X-SMTPAPI: {"filters":{"subscriptiontrack":{"settings":{"enable":0}}}}'],
        (None, None, None, None),
    ),
    "30-symfony": (["X-Tag: a", "X-Tag: b", "X-Track: opens=false; clicks=default"], ("a", "false", None, None)),
}

# What each message is besides its settings, with the platform's defaults: action, remarks, classes of loss.
BESIDES: dict[str, tuple[Action, list[str], list[str]]] = {
    "10-mailjet-2": (Action.WARN, [], ["ambiguous"]),
    "12-textonly": (Action.IGNORE, [], ["metadata"]),
    "17-modern-policy": (Action.IGNORE, [], ["metadata"]),
    "19-cut-inside-a-literal": (Action.IGNORE, ["invalid_value"], []),
    "20-broken": (Action.IGNORE, ["invalid_value"], []),
    "21-two-fields": (Action.IGNORE, ["repeated_field"], []),
    "24-two-providers": (Action.IGNORE, ["two_providers"], []),
    "26-other-recipients": (Action.REFUSE, [], ["recipients"]),
    "27-test-mode": (Action.DISCARD, [], ["test_mode"]),
}

TARGETS = (GROUP, OPENS, CLICKS, CSS)


def providers(row: str) -> tuple[str, ...]:
    return (*FIVE, "symfony") if row == "30-symfony" else FIVE


def recipients(row: str) -> int:
    return 26 if row == "28-twenty-six-recipients" else 1


def test_every_row_of_the_table_has_a_test() -> None:
    """Thirty rows, none forgotten."""
    assert {row[:2] for row in ROWS} == {f"{number:02}" for number in range(1, 31)}


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str) -> None:
    """The fields become what the table says, and where an app says nothing, nothing is said."""
    fields, expected = ROWS[row]
    found = run(engine(*providers(row)), *fields, to=recipients(row))
    assert values(found) == {name: value for name, value in zip(TARGETS, expected, strict=True) if value is not None}
    action, remarks, classes = BESIDES.get(row, (Action.IGNORE, [], []))
    assert (found.action, kinds(found), [loss.loss_class for loss in found.losses]) == (action, remarks, classes)


@pytest.mark.parametrize("row", ROWS)
def test_row_with_defaults_of_the_provider(row: str) -> None:
    """Where the app says nothing, the provider's documented defaults are written; what is native or invalid stays."""
    fields, expected = ROWS[row]
    found = run(engine(*providers(row), **PROVIDER_DEFAULTS), *fields, to=recipients(row))
    files = {file.provider: file for file in shipped(*providers(row))}
    wanted = {name: str(value).lower() for name, value in files[found.providers[0]].when_absent.items()}
    wanted |= {name: value for name, value in zip(TARGETS, expected, strict=True) if value is not None}
    unsettled = {
        "19-cut-inside-a-literal": (OPENS, CLICKS),
        "20-broken": (OPENS, CLICKS),
        "23-native-field-wins": (OPENS,),
    }
    assert values(found) == {name: value for name, value in wanted.items() if name not in unsettled.get(row, ())}


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith(("26", "27"))])
def test_row_with_invalid_values_refused(row: str) -> None:
    """With ``on_invalid: refuse`` a broken X-SMTPAPI is answered with its name and reason, and all else passes."""
    fields, _ = ROWS[row]
    found = run(engine(*providers(row), refuse_invalid=True), *fields)
    if row in ("19-cut-inside-a-literal", "20-broken"):
        assert (found.action, found.reason) == (Action.REFUSE, "X-SMTPAPI cannot be read: not JSON")
    else:
        assert found.action in (Action.IGNORE, Action.WARN)


@pytest.mark.parametrize(
    ("provider", "group"), [("mailgun", "a"), ("mandrill", "b"), ("postmark", "a"), ("symfony", "a"), ("", "a")]
)
def test_row_24_takes_the_provider_of_the_login(provider: str, group: str) -> None:
    """Of two providers the configured one counts, wherever its fields stand; else field order."""
    found = run(engine(), "X-Mailgun-Tag: a", "X-MC-Tags: b", provider=provider)
    assert (values(found), kinds(found)) == ({GROUP: group}, ["two_providers"])


@pytest.mark.parametrize(
    ("addresses", "action"),
    [
        ('["r0@example.com"]', Action.IGNORE),
        ('"R0@Example.com"', Action.IGNORE),
        ('["Jane <r0@example.com>"]', Action.IGNORE),
        ("[]", Action.IGNORE),
        ('["r0@example.com", "x@example.com"]', Action.REFUSE),
        ('["x@example.com"]', Action.REFUSE),
    ],
)
def test_row_26_is_about_recipients_that_differ(addresses: str, action: Action) -> None:
    """A single recipient who is named in both places loses nothing."""
    found = run(engine(), f'X-SMTPAPI: {{"to":{addresses}}}')
    assert found.action is action
    reason = "No counterpart here for X-SMTPAPI to (lost: the real recipients)"
    assert found.reason == (reason if action is Action.REFUSE else "")


def test_row_27_says_what_was_discarded() -> None:
    """The reason names the field, for the reply and the log."""
    found = run(engine(), "X-Mailgun-Drop-Message: yes")
    assert found.reason == "X-Mailgun-Drop-Message (test mode that delivers nothing)"
    assert run(engine(), "X-Mailgun-Drop-Message: no").action is Action.IGNORE
