"""The header section of a message that is kept: what is read, what leaves, and what is remembered of it."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.compose import fields
from proxy.compose.fields import Wishes, prepare
from proxy.mail.fields import HeaderSection

NOW = datetime(2026, 11, 26, tzinfo=UTC)
KEPT = b"Date: x\r\nMessage-ID: <x@x>\r\n"


def prepared(text: bytes) -> fields.Prepared:
    """Prepare a section that has what would be added."""
    return prepare(text + KEPT, "id@example.com", NOW)


def test_first_value_that_is_not_empty_counts() -> None:
    """An empty field says nothing, wherever it stands."""
    found = prepared(
        b"X-Cmail-GroupName: \r\nX-Cmail-GroupName: a\r\nx-cmail-groupname: b\r\nX-Cmail-TrackOpens: No\r\n"
    )
    assert (found.head, found.wishes) == (KEPT, Wishes("a", track_opens=False))


def test_fields_of_the_platform_that_nobody_knows_leave_and_nothing_is_remembered_of_them() -> None:
    """Their names are the sender's to choose, in any number and size."""
    before = fields._known_wishes.cache_info().currsize
    for number in range(100):
        assert prepared(b"X-Cmail-%d%s: a\r\n" % (number, b"a" * 100)) == fields.Prepared(KEPT, Wishes(), "")
    assert fields._known_wishes.cache_info().currsize <= before + 1


def test_long_values_are_read_and_not_remembered() -> None:
    """The limit is in octets."""
    before = fields._known_wishes.cache_info().currsize
    group = prepared(b"X-Cmail-GroupName: " + b"g" * 2000 + b"\r\n").wishes.group
    assert group is not None
    assert group.startswith("ggg")
    assert fields._known_wishes.cache_info().currsize == before


NAMES = [
    *("Bcc", "bcc", "Resent-Bcc", "X-Bcc", "Bccs", "Resent-Cc"),
    *("X-Cmail-GroupName", "X-CMAIL-TRACKOPENS", "x-cmail-", "X-Cmail-Other", "X-Cmail", "XX-Cmail-GroupName"),
    *("Date", "Resent-Date", "MESSAGE-ID", "Subject", "Subjects", "From", "Received"),
]
VALUES = [
    "",
    " ",
    " a",
    " no",
    " =?utf-8?q?caf=C3=A9?=",
    " a\r\n b",
    "\r\n\tBcc: folded",
    " a\r\n \r\n c",
    ": Bcc: x",
    " \xe9",
]
FIELD = st.builds(
    lambda name, blank, value: f"{name}{blank}:{value}\r\n".encode("latin-1"),
    st.sampled_from(NAMES),
    st.sampled_from(["", " ", "\t "]),
    st.sampled_from(VALUES),
)


@example(mailbox_line=b"From Bcc: x\r\n", section=[b"Bcc: x\r\n"])
@example(mailbox_line=b"", section=[b"From : a\r\n b\r\n"])  # what split() takes for an mbox line
@example(mailbox_line=b"", section=[b"X-Cmail-GroupName: \r\n", b"x-cmail-groupname\t: a\r\n b\r\n", b"Date: x\r\n"])
@given(
    mailbox_line=st.sampled_from([b"", b"From a@example.com Mon Nov 23 09:00:00 2026\r\n", b">From Bcc: x\r\n"]),
    section=st.lists(FIELD, max_size=8),
)
def test_what_is_not_asked_for_keeps_its_bytes_and_its_order(mailbox_line: bytes, section: list[bytes]) -> None:
    """Fields leave whole, by their name alone; what is missing is added at the end."""
    whole = HeaderSection.split(mailbox_line + b"".join(section) + b"\r\n")
    names = [(field.name.lower(), field.raw) for field in whole]
    kept = [raw for name, raw in names if not (name.startswith("x-cmail-") or name in ("bcc", "resent-bcc"))]
    if b"date" not in whole.keys:
        kept.append(f"Date: {format_datetime(NOW)}\r\n".encode())
    if b"message-id" not in whole.keys:
        kept.append(b"Message-ID: <id@example.com>\r\n")
    found = prepare(whole.raw[: whole.end], "id@example.com", NOW)
    assert found.head == b"".join(kept)
    groups = [field.value.strip() for field in whole if field.name.lower() == "x-cmail-groupname" and field.value]
    assert (found.wishes.group is not None) == bool(groups)


@pytest.mark.parametrize(
    ("section", "subject"),
    [
        (b"Subject: one\r\nSubject: two\r\n", "one"),
        (b"Subject:\r\nSUBJECT : =?utf-8?q?caf=C3=A9?=\r\n and tea\r\n", "caf\u00e9 and tea"),
        (b"Subject: " + b"s" * 300 + b"\r\n", "s" * 200),
        (b"X-Subject: one\r\n", ""),
    ],
)
def test_subject_is_remembered_for_people(section: bytes, subject: str) -> None:
    """Decoded and cut; of several the first that says something."""
    assert prepared(section).subject == subject
