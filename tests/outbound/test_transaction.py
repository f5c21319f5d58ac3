"""What goes over the wire for a message: transparency dots and line ends."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.outbound import transaction
from proxy.outbound.transaction import pieces, stuffed


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b""),
        (b"a\r\n", b"a\r\n"),
        (b"a", b"a\r\n"),
        (b".", b"..\r\n"),
        (b".a\r\n..b\r\n.\r\n", b"..a\r\n...b\r\n..\r\n"),
        (b"a\r\n.", b"a\r\n..\r\n"),
        (b"a.\r\n b.\r\n", b"a.\r\n b.\r\n"),
        (b"a\n.\nb\r.\rc\r\r\n", b"a\r\n..\r\nb . c\r\n"),
    ],
)
def test_dots_are_doubled_at_the_start_of_lines(content: bytes, wire: bytes) -> None:
    """RFC 5321, 4.5.2; a bare CR or LF is none of a line end that a host could see otherwise."""
    assert stuffed(content) == wire


@given(st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\r", b"\n", b"\x00", b"\xff"])).map(b"".join))
def test_no_content_ends_the_data_early_and_none_is_changed(content: bytes) -> None:
    """The end is the end, for hosts that take bare line ends, too; and without the dots it is what it was."""
    wire = stuffed(content)
    assert not wire or wire.endswith(b"\r\n")
    assert not re.search(rb"(?:^|\r\n|\n|\r)\.(?:\r\n|\n|\r)", wire)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire)
    back = re.sub(rb"^\.", b"", wire, flags=re.MULTILINE)
    if not re.search(rb"\r(?!\n)|(?<!\r)\n", content):
        assert back == content or back == content + b"\r\n"


@given(
    st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\r", b"\n", b"bbbbbbbb"])).map(b"".join),
    st.integers(1, 9),
)
def test_pieces_of_a_message_are_the_message(content: bytes, octets: int) -> None:
    """However large they are, together they are what the message is in one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "_CHUNK_OCTETS", octets)
        assert b"".join(pieces(content)) == stuffed(content)
