"""What a sender can make the engine do and keep: bounded, whatever the message is."""

import pytest

from proxy import rulebook
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.settings import Settings
from proxy.translate import values
from proxy.translate.engine import Engine

ENVELOPE = Envelope("app@example.com", ("ann@example.net",))


def engine() -> Engine:
    """The rules as they are shipped."""
    return rulebook.RuleBook(Settings()).engine


def test_run_of_combining_marks_is_cut_before_it_is_put_in_order() -> None:
    """Normal form takes the square of their number, and a header section has room for a hundred thousand."""
    section = HeaderSection.split(b"X-Mailgun-Tag: a" + "\u0315\u0300".encode() * 60_000 + b"\r\n\r\n")
    group = engine().translate(section, ENVELOPE).group
    assert group is not None
    assert group[0] == "a" or group[0] == "\u00e0"
    assert len(group) <= values.MAX_NAME_CHARACTERS


def test_long_names_are_not_kept() -> None:
    """Names are the sender's to choose; what is kept of them is bounded in size, too."""
    here = engine()
    for number in range(50):
        name = b"X-MC-" + b"n" * 10_000 + str(number).encode()
        section = HeaderSection.split(name + b": 1\r\nX-MC-Tags: orders\r\n\r\n")
        translation = here.translate(section, ENVELOPE)
        assert translation.group == "orders"
        assert translation.removed == (name.decode(), "X-MC-Tags")
    planner = here.planner
    assert sum(map(len, planner._interests)) < 5_000
    assert sum(len(key) for plan in planner._plans for key in plan) < 5_000


def test_many_names_and_many_sets_of_names_are_not_kept_for_ever() -> None:
    """Each message with other names: the memory of plans is cleared when it is full, and goes on being right."""
    here = engine()
    for number in range(6_000):
        section = HeaderSection.split(b"X-A-%d: 1\r\nX-PM-Tag: orders\r\n\r\n" % number)
        assert here.translate(section, ENVELOPE).group == "orders"
    assert len(here.planner._interests) <= 4_200
    assert len(here.planner._plans) <= 512


READER = Envelope("app@example.com", tuple(f"{'r' * 400}{number}@example.com" for number in range(25)))


@pytest.mark.parametrize(
    ("fields", "envelope"),
    [
        pytest.param(b"X-Own: 1\r\n" * 70, ENVELOPE, id="more fields than a plan is kept for"),
        pytest.param(b"X-" + b"a" * 130 + b": 1\r\n", ENVELOPE, id="a longer name than a plan is kept for"),
        pytest.param(b"DKIM-Signature: v=1; h=from; b=x\r\n", ENVELOPE, id="signed"),
        pytest.param(b"X-PM-Metadata-a: " + b"a" * 1000 + b"\r\n", ENVELOPE, id="a long value"),
        pytest.param(b"X-Mailgun-Recipient-Variables: {}\r\n", READER, id="long addresses, where a rule asks for them"),
    ],
)
def test_nothing_is_kept_of_what_is_too_large_or_cannot_come_again(fields: bytes, envelope: Envelope) -> None:
    """What is kept from message to message is for the next one with the same fields, and has a limit in octets."""
    here = engine()
    for _ in range(2):
        assert (
            here.translate(HeaderSection.split(b"X-PM-Tag: orders\r\n" + fields + b"\r\n"), envelope).group == "orders"
        )
    assert here._found == {}
    assert here.translate(HeaderSection.split(b"X-PM-Tag: orders\r\n\r\n"), envelope).group == "orders"
    assert len(here._found) == 1


def test_repeated_content_type_counts_where_it_holds_the_word() -> None:
    """A field that is looked at only for a word in its value is found wherever it stands, message after message."""
    here = engine()
    plain = b"Content-Type: text/plain\r\n"
    batch = b"Content-Type: multipart/mailgun-variables; boundary=x\r\n"
    for fields, refused in ((plain, False), (plain + batch, True), (batch + plain, True), (plain + plain, False)):
        section = HeaderSection.split(b"From: a@example.com\r\n" + fields + b"\r\n")
        assert (here.translate(section, ENVELOPE).action.value == "refuse") is refused


def test_thousand_empty_json_fields_are_quick_work() -> None:
    """Each field of a name is looked at once, and not once for each other one."""
    section = HeaderSection.split(b"X-SMTPAPI:\r\n" * 900 + b'X-SMTPAPI: {"category": "orders"}\r\n\r\n')
    assert engine().translate(section, ENVELOPE).group == "orders"


class Watched(HeaderSection):
    """A section that notes which values are asked for."""

    asked: list[str]

    def value(self, index: int) -> bytes:
        """Note the name, and give the value."""
        self.asked.append(self.name(index))
        return super().value(index)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        (b"From: a@example.com\r\nSubject: s\r\nX-Own: o\r\n", []),
        (
            b"Subject: s\r\nX-PM-Tag: a\r\nX-Own: o\r\nX-Mailgun-Sid: 1\r\nX-PM-TrackOpens: no\r\n",
            ["X-PM-Tag", "X-PM-TrackOpens"],
        ),
        (b"Subject: s\r\nX-Mailgun-Native-Send: true\r\nDate: d\r\n", []),
        (b"X-Own: o\r\n" * 900 + b"X-MC-Tags: a\r\n", ["X-MC-Tags"]),
    ],
)
def test_engine_reads_the_values_that_rules_name_and_no_others(fields: bytes, asked: list[str]) -> None:
    """
    Fields are looked up by name: what an app writes into others costs nothing and can do no harm. The same fields again
    are not read again, unless there are so many that nothing is kept of them.
    """
    here = engine()
    for expected in (asked, asked if len(fields) > 1000 else []):
        section = Watched.split(fields + b"\r\n")
        assert isinstance(section, Watched)
        section.asked = []
        here.translate(section, ENVELOPE)
        assert section.asked == expected


def test_rules_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read and no rule parsed for a message."""
    here = engine()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a rule file was looked at for a message")

    for name in ("read_text", "read_bytes", "open", "stat"):
        monkeypatch.setattr(f"pathlib.Path.{name}", never)
    monkeypatch.setattr("proxy.translate.parse.parse", never)
    for fields in (b"X-PM-Tag: a\r\n\r\n", b"X-MC-Tags: a\r\nX-Mailgun-Tag: b\r\n\r\n"):
        assert here.translate(HeaderSection.split(fields), ENVELOPE).group == "a"
