"""The header section: bytes, order, folding and repetition kept; where it ends; how it is edited."""

from itertools import chain, combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.mail.fields import HeaderSection

RECEIVED = b"Received: from a.invalid\r\n\tby b.invalid;  Mon, 23 Nov 2026 09:00:00 +0000\r\n"
TAG = b"x-MAILGUN-tag:a, b \r\n"
TAG_AGAIN = b"X-Mailgun-Tag:\r\n  second,\r\n \r\n\tfolded\r\n"
SUBJECT = b"Subject \t: =?utf-8?q?caf=C3=A9?= and raw \xe9\x00\r\n"
FIELDS = (RECEIVED, TAG, TAG_AGAIN, SUBJECT)
MAILBOX_LINE = b"From sender@example.com Mon Nov 23 09:00:00 2026\r\n"
ADDED = b"X-Cmail-GroupName: a\r\nX-Cmail-TrackOpens: false\r\n"


def split(*fields: bytes, rest: bytes = b"\r\nbody: no field\r\n") -> HeaderSection:
    return HeaderSection.split(b"".join(fields) + rest)


def test_fields_keep_bytes_order_folding_and_repetition() -> None:
    """Each field is what stood in the message, in its place, and a repeated field is there twice."""
    section = split(*FIELDS)
    assert [field.raw for field in section] == list(FIELDS)
    assert len(section) == 4
    assert section[2].raw == TAG_AGAIN


def test_names_as_written_and_keys_in_lower_case() -> None:
    """The name keeps its spelling for reports; the key is for looking up without regard to case."""
    section = split(*FIELDS)
    assert [field.name for field in section] == ["Received", "x-MAILGUN-tag", "X-Mailgun-Tag", "Subject"]
    assert section.keys == [b"received", b"x-mailgun-tag", b"x-mailgun-tag", b"subject"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"A: b\r\n", b"b"),
        (b"A:b\r\n", b"b"),
        (b"A:\r\n", b""),
        (b"A: \t \r\n", b""),
        (b"A:\r\n b\r\n", b"b"),
        (b"A: \r\n\tb c \r\n", b"b c"),
        (b"A: b\r\n c\r\n\td\r\n", b"b c\td"),
        (b"A: b\r\n  c\r\n", b"b  c"),
        (b"A \t: b: c\r\n", b"b: c"),
        (b"A: b\r\n \r\n c\r\n", b"b  c"),
        (b"A: \x00\xe9\r\n", b"\x00\xe9"),
    ],
)
def test_value_unfolded_loses_only_line_ends_and_outer_blanks(field: bytes, value: bytes) -> None:
    """Unfolding takes the CRLF and leaves the blank after it, also where the first line is empty."""
    assert split(field)[0].value == value


@pytest.mark.parametrize("line", [MAILBOX_LINE, b">From x\r\n", b"From \r\n"])
def test_mailbox_line_is_kept_in_front_and_is_no_field(line: bytes) -> None:
    """An mbox line at the head of a message neither counts as a field nor hides the fields behind it."""
    section = split(line, TAG, SUBJECT)
    assert section.keys == [b"x-mailgun-tag", b"subject"]
    assert section.start == len(line)
    assert section.edited({0}, ADDED, at=0) == line + ADDED + SUBJECT


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"\r\n",
        b"\r\nX-PM-Tag: in the body\r\n",
        b"no colon here\r\nX-PM-Tag: in the body\r\n",
        b": no name\r\n",
        b"two words: no name\r\n",
        b"\xc3\xa9: no name\r\n",
        b"A\x00: no name\r\n",
        b"From sender Mon Nov 23 09:00:00 2026\r\nX-PM-Tag: in the body\r\n",
        b"--boundary\r\nContent-Type: text/plain\r\n",
        b"X-PM-Tag: a line without its end",
        b"X-PM-Tag",
    ],
)
def test_section_ends_before_the_first_line_that_is_no_field(rest: bytes) -> None:
    """What next hops take for the start of the body is not ours to read, whatever it looks like."""
    section = split(TAG, SUBJECT, rest=rest)
    assert section.keys == [b"x-mailgun-tag", b"subject"]
    assert section.raw[section.end :] == rest


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\r\nSubject: body\r\n", b" folded: what\r\n", b"hello\r\n"])
def test_section_may_be_empty(data: bytes) -> None:
    """A message without any field has an empty section, to which fields can be added."""
    section = HeaderSection.split(data)
    assert (len(section), section.start, section.end, list(section)) == (0, 0, 0, [])
    assert section.edited((), b"") == b""
    assert section.edited((), ADDED) == ADDED


@pytest.mark.parametrize("mailbox_line", [b"", MAILBOX_LINE])
@pytest.mark.parametrize("added", [b"", ADDED])
@pytest.mark.parametrize("at", [None, 0, 1, 2, 3])
def test_edited_with_every_combination_keeps_the_other_bytes(at: int | None, added: bytes, mailbox_line: bytes) -> None:
    """Whichever fields go and wherever new ones come, all other fields stay as they are, in order."""
    section = split(mailbox_line, *FIELDS)
    every = range(len(FIELDS))
    for remove in chain.from_iterable(combinations(every, size) for size in range(len(FIELDS) + 1)):
        pieces = [mailbox_line]
        for index, field in enumerate(FIELDS):
            pieces += [added] * (index == at) + [field] * (index not in remove)
        pieces += [added] * (at is None)
        assert section.edited(set(remove), added, at) == b"".join(pieces), remove


LINES = st.lists(
    st.one_of(
        st.sampled_from([b"A: b", b" folded", b"\tfolded", b"", b"From x", b">From x", b"a b: c", b"X :", b":", b"A:"]),
        st.binary(max_size=12),
    ),
    max_size=8,
)


@given(st.one_of(st.binary(max_size=60), LINES.map(b"\r\n".join)))
@example(b"From x\nA: b\n\n")
def test_split_of_any_bytes_gives_a_section_that_is_their_head(data: bytes) -> None:
    """No input is refused: the fields are contiguous, begin behind the mbox line and reparse to themselves."""
    section = HeaderSection.split(data)
    assert b"".join(field.raw for field in section) == data[section.start : section.end]
    assert section.edited((), b"") == data[: section.end]
    assert HeaderSection.split(data[: section.end]).keys == section.keys
    assert [field.name.lower().encode() for field in section] == section.keys
