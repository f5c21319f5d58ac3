"""
What providers do with a message, held against the same message through the proxy: the rows that need an envelope, a
reply or a setting. The row numbers are those of the list of provider behaviour that the rule files were written from.
Row 28 (too many recipients) is in ``test_limits``.
"""

from collections.abc import Iterator

import pytest

from tests.smtp_in.dialogue import QUEUED
from tests.smtp_in.site import Site, site

NO_PROVIDER, OF_MANDRILL = range(2)
"""Listeners of each proxy, by their place in the settings."""

REST = b"Subject: x\r\n"
BODY = b"\r\nbody\r\n.\r\n"


def listeners() -> list[dict[str, object]]:
    """One without a provider, one of an app that was written for Mandrill."""
    base: dict[str, object] = {"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "none"}
    return [base, {**base, "provider": "mandrill"}]


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with the default `rules.on_invalid: pass`."""
    with site(tmp_path_factory.mktemp("pass"), listeners=listeners()) as started:
        yield started


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy with `rules.on_invalid: refuse`."""
    rules = {"on_invalid": "refuse"}
    with site(tmp_path_factory.mktemp("refuse"), listeners=listeners(), rules=rules) as started:
        yield started


@pytest.fixture(params=["pass", "refuse"])
def either(request: pytest.FixtureRequest, passing: Site, refusing: Site) -> Site:
    """Both settings, for rows on which it makes no difference."""
    chosen = passing if request.param == "pass" else refusing
    chosen.forget()
    return chosen


def send(where: Site, fields: bytes, listener: int = NO_PROVIDER) -> str:
    """Send a message with these fields, and give the reply to its dot."""
    where.forget()
    with where.client(listener) as client:
        return client.data(fields + REST + BODY)


CUT_IN_STRING = b'X-SMTPAPI: {"category": "wel\r\n come"}\r\n'
CUT_IN_LITERAL = b'X-SMTPAPI: {"filters": {"opentrack": {"settings": {"enable": tr\r\n ue}}}}\r\n'
BAD = b"X-SMTPAPI: {bad\r\n"
NOT_JSON = "invalid_value: X-SMTPAPI: not JSON; nothing in it is used"


def test_row_19_json_cut_inside_a_string_has_one_blank_more(either: Site) -> None:
    """Folding inside a string parses; the blank of the fold is in the name, as it would have been at SendGrid."""
    assert send(either, CUT_IN_STRING) == QUEUED
    assert either.header() == b"X-Cmail-GroupName: wel come\r\n" + REST


@pytest.mark.parametrize(
    "field", [pytest.param(CUT_IN_LITERAL, id="row-19-cut-in-a-literal"), pytest.param(BAD, id="row-20-no-json")]
)
def test_json_that_does_not_parse_passes_by_default_with_nothing_set(passing: Site, field: bytes) -> None:
    """SendGrid bounced such mail; by default it goes on without the field, and the log says so."""
    assert send(passing, field) == QUEUED
    assert passing.header() == REST
    assert passing.lines()[0]["remarks"] == [NOT_JSON]


@pytest.mark.parametrize(
    "field", [pytest.param(CUT_IN_LITERAL, id="row-19-cut-in-a-literal"), pytest.param(BAD, id="row-20-no-json")]
)
def test_json_that_does_not_parse_is_refused_where_so_set(refusing: Site, field: bytes) -> None:
    """`rules.on_invalid: refuse` answers 554 5.6.0 and sends nothing."""
    before = refusing.proxy.metric("cmail_proxy_messages_refused_total", reason="invalid_value")
    assert send(refusing, field) == "554 5.6.0 X-SMTPAPI cannot be read: not JSON; not sent"
    assert refusing.upstream.taken == []
    assert refusing.proxy.metric("cmail_proxy_messages_refused_total", reason="invalid_value") == before + 1


def test_row_21_of_two_smtpapi_fields_the_first_counts(either: Site) -> None:
    """Both are removed, and the log says that there were two."""
    fields = b'X-SMTPAPI: {"category": "first"}\r\nX-SMTPAPI: {"category": "second"}\r\n'
    assert send(either, fields) == QUEUED
    assert either.header() == b"X-Cmail-GroupName: first\r\n" + REST
    assert either.lines()[0]["remarks"] == ["repeated_field: X-SMTPAPI: only the first one counts"]


@pytest.mark.parametrize(
    ("listener", "group"),
    [
        pytest.param(NO_PROVIDER, b"of mailgun", id="row-24-without-a-provider-field-order-decides"),
        pytest.param(OF_MANDRILL, b"of mandrill", id="row-24-with-a-provider-it-decides"),
    ],
)
def test_fields_of_two_providers_count_for_one_of_them(either: Site, listener: int, group: bytes) -> None:
    """The provider of the listener wins, else the field that stands first; that there were two is a warning."""
    fields = b"X-Mailgun-Tag: of mailgun\r\nX-MC-Tags: of mandrill\r\n"
    assert send(either, fields, listener) == QUEUED
    assert either.header() == b"X-Cmail-GroupName: " + group + b"\r\n" + REST
    (line,) = either.lines()
    assert line["providers"] == ["mailgun", "mandrill"]
    assert line["remarks"] == ["two_providers: fields of mailgun, mandrill in one message"]


def test_row_26_recipients_in_the_json_that_are_others_refuse_the_message(either: Site) -> None:
    """SendGrid would have sent to those in the JSON; here the envelope counts, so the message is refused."""
    field = b'X-SMTPAPI: {"to": ["bob@example.org"], "category": "x"}\r\n'
    expected = "554 5.6.0 No counterpart here for X-SMTPAPI to (lost: the real recipients); not sent"
    assert send(either, field) == expected
    assert either.upstream.taken == []


def test_row_26_recipient_in_the_json_that_is_the_same_loses_nothing(either: Site) -> None:
    """The one recipient named in both places gets the message."""
    assert send(either, b'X-SMTPAPI: {"to": ["Ann <ann@example.net>"], "category": "x"}\r\n') == QUEUED
    assert either.header() == b"X-Cmail-GroupName: x\r\n" + REST


@pytest.mark.parametrize("word", ["yes", "true", "True"])
def test_row_27_test_mode_is_answered_250_and_nothing_is_sent(either: Site, word: str) -> None:
    """Mailgun's test mode: the app hears success, with words that say what happened, and the platform hears nothing."""
    before = either.proxy.metric("cmail_proxy_messages_discarded_total", reason="test_mode")
    reply = send(either, f"X-Mailgun-Drop-Message: {word}\r\n".encode())
    assert reply == ("250 2.0.0 Discarded and not sent: X-Mailgun-Drop-Message (test mode that delivers nothing)")
    assert either.upstream.taken == []
    assert either.proxy.metric("cmail_proxy_messages_discarded_total", reason="test_mode") == before + 1


def test_row_27_test_mode_switched_off_sends(either: Site) -> None:
    """The field with `no` is no test mode."""
    assert send(either, b"X-Mailgun-Drop-Message: no\r\n") == QUEUED
    assert either.header() == REST
