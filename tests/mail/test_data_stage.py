"""
The octets after 354, against an oracle and against next hops of several kinds.

The oracle is the specification in the docstring of ``proxy.mail.data_stage``, written for a whole message at once.
"""

import random
import re
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.mail.data_stage import END_OF_DATA, DataStage, mend_line_ends


def oracle(stream: bytes) -> tuple[bytes, bytes, bool] | None:
    """Content, rest and irregularity of a stream that holds the end of data; None where it does not."""
    before, end, rest = (b"\r\n" + stream).partition(b"\r\n.\r\n")
    if not end:
        return None
    data = (before + b"\r\n")[2:]
    irregular = re.search(rb"\r(?!\n)|(?<!\r)\n", data) is not None
    content = b""
    while data:
        line, _, data = data.partition(b"\n")
        line = line.rstrip(b"\r").replace(b"\r", b" ")
        content += (b"." if line.strip(b"\0") == b"." else b"") + line + b"\r\n"
    return content, rest, irregular


def run(pieces: Iterable[bytes]) -> tuple[DataStage, bytes, bytes]:
    """Feed the pieces up to the end; the stage, all content, and the pieces behind the end."""
    stage = DataStage()
    content = b""
    behind = b""
    for piece in pieces:
        if stage.complete:
            behind += piece
        else:
            content += stage.feed(piece)
    return stage, content, behind


def check(stream: bytes, pieces: Iterable[bytes]) -> bytes:
    """Compare one segmentation with the oracle; the content."""
    stage, content, behind = run(pieces)
    expected = oracle(stream)
    assert stage.complete == (expected is not None)
    if expected is not None:
        assert (content, stage.rest + behind, stage.irregular) == expected
        assert stage.octets == len(stream) - len(expected[1]) - len(END_OF_DATA)
    return content


def cuts(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in zip(edges, edges[1:], strict=False)]


# Next hops. Each reads DATA from a stream and gives the messages it would take out of it, as far as each is complete.


def strict(stream: bytes) -> list[bytes]:
    """Only CRLF.CRLF ends data."""
    return re.split(rb"(?:(?<=\r\n)|\A)\.\r\n", stream)[:-1]


def bare_newlines(stream: bytes) -> list[bytes]:
    """A bare LF ends a line as well; so does a bare CR."""
    return strict(re.sub(rb"\r\n|\r|\n", rb"\r\n", stream))


def bare_line_feeds(stream: bytes) -> list[bytes]:
    """A bare LF ends a line as well, and CRs in front of it go."""
    return strict(re.sub(rb"\r*\n", rb"\r\n", stream))


def no_nuls(stream: bytes) -> list[bytes]:
    """NULs are dropped first."""
    return bare_newlines(stream.replace(b"\0", b""))


def carriage_returns_dropped(stream: bytes) -> list[bytes]:
    """CR means nothing."""
    return strict(stream.replace(b"\r", b"").replace(b"\0", b"").replace(b"\n", b"\r\n"))


NEXT_HOPS: list[Callable[[bytes], list[bytes]]] = [
    strict,
    bare_newlines,
    bare_line_feeds,
    no_nuls,
    carriage_returns_dropped,
]


def check_every_hop_sees_one_message(content: bytes) -> None:
    for hop in NEXT_HOPS:
        assert len(hop(content + END_OF_DATA + b"QUIT\r\n")) == 1, hop.__name__


SMUGGLING = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CR.LF": b"\r.\n",
    "CR.CRLF": b"\r.\r\n",
    "LF.CR": b"\n.\r",
    "CRLF.CR": b"\r\n.\r",
    "CRCRLF.CRCRLF": b"\r\r\n.\r\r\n",
    "CRLF.CRCRLF": b"\r\n.\r\r\n",
    "LFCR.CRLF": b"\n\r.\r\n",
    "CRLF-NUL.CRLF": b"\r\n\0.\r\n",
    "CRLF.NUL-CRLF": b"\r\n.\0\r\n",
    "CRLF.CR-NUL-LF": b"\r\n.\r\0\n",
    "CR-NUL-LF.CRLF": b"\r\0\n.\r\n",
    "CRLF-NUL.NUL-LF": b"\r\n\0.\0\n",
    "LF-NUL.NUL-CR": b"\n\0.\0\r",
    "NUL-CRLF.LF": b"\0\r\n.\n",
}


@pytest.mark.parametrize("tail", [b"MAIL FROM:<evil@example.com>\r\nDATA\r\nevil\r\n", b"", b".\r", b"\0"])
@pytest.mark.parametrize("head", [b"Subject: one\r\n\r\nbody", b""])
@pytest.mark.parametrize("variant", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_end_of_data_with_bare_characters_is_content_of_one_message_in_every_split(
    variant: bytes, head: bytes, tail: bytes
) -> None:
    """What is not CRLF.CRLF ends nothing here, and at no next hop either, wherever the segments are cut."""
    stream = head + variant + tail + b"\r\n.\r\nRSET\r\n"
    first = oracle(stream)
    if first is not None and first[1] != b"RSET\r\n":
        # An empty line end in front completes a strict CRLF.CRLF at the very head: that is the end, and lawful.
        assert (head, stream[:3]) == (b"", b".\r\n") or b"\r\n.\r\n" in stream[: -len(b"\r\n.\r\nRSET\r\n")]
    length = len(head) + len(variant) + len(tail)
    place = range(max(0, len(head) - 2), length + 6)
    segmentations = [[], range(1, len(stream)), *([at] for at in place)]
    segmentations += [[at, to] for at in place for to in range(at + 1, min(at + 6, length + 6))]
    for segmentation in segmentations:
        check_every_hop_sees_one_message(check(stream, cuts(stream, segmentation)))
