"""
The octets after 354, against an oracle and against next hops of several kinds.

The oracle is the specification in the docstring of ``proxy.mail.data_stage``, written for a whole message at once.
"""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise

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
    return [stream[start:end] for start, end in pairwise(edges)]


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
    expected = oracle(stream)
    assert expected is not None and expected[1] == b"RSET\r\n"
    length = len(head) + len(variant) + len(tail)
    place = range(max(0, len(head) - 2), length + 6)
    segmentations = [[], range(1, len(stream)), *([at] for at in place)]
    segmentations += [[at, to] for at in place for to in range(at + 1, min(at + 6, length + 6))]
    for segmentation in segmentations:
        check_every_hop_sees_one_message(check(stream, cuts(stream, segmentation)))


PIECES = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\0", b"\r\n", b"\r\n.\r\n", b"\n.\n", b"..", b"a", b"word ", b"\xff"]),
    max_size=14,
)


@given(PIECES.map(b"".join), st.data())
@example(b"\r\n\0.\r\n.\r\n", None)
@example(b"a\r\r", None)
def test_data_in_any_segments_is_what_the_specification_says(stream: bytes, data: st.DataObject | None) -> None:
    """Whatever the octets and however they are cut, content, end, rest, size and remark are the same."""
    check(stream, [stream])
    check(stream, cuts(stream, range(1, len(stream))))
    if data:
        check(stream, cuts(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=6))))
    finished = stream + b"\r\n.\r\n"
    check_every_hop_sees_one_message(check(finished, [finished]))
    check_every_hop_sees_one_message(check(finished, cuts(finished, range(1, len(finished)))))


@given(st.binary(max_size=40), st.integers(1, 5))
def test_data_of_any_octets_is_what_the_specification_says(stream: bytes, step: int) -> None:
    """The same for octets that are not made to confuse."""
    finished = stream + b"\r\n.\r\n"
    check(finished, cuts(finished, range(step, len(finished), step)))


REGULAR = (
    b"Subject: one\r\n\r\nplain\r\n..stuffed\r\n..\r\n. \r\n.a\r\n\r\n\r\nx.\r\n"
    + b"long " * 1000
    + b"\r\n\xff\xfe\r\n"
)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 6000])
def test_data_with_proper_line_ends_leaves_byte_for_byte(step: int) -> None:
    """Dots stay stuffed, long lines stay long, 8-bit octets stay; nothing is remarked."""
    stream = REGULAR + END_OF_DATA
    stage, content, _ = run(cuts(stream, range(step, len(stream), step)))
    assert content == REGULAR
    assert (stage.complete, stage.irregular, stage.octets) == (True, False, len(REGULAR))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 20])
def test_data_of_an_empty_message_is_empty(step: int) -> None:
    """The CRLF of the DATA command is the first half of the end."""
    stage, content, _ = run(cuts(END_OF_DATA, range(step, 3, step)))
    assert (content, stage.complete, stage.rest, stage.octets, stage.irregular) == (b"", True, b"", 0, False)


def test_data_with_something_behind_the_end_gives_it_back() -> None:
    """Commands that came in the same segment are the next thing to read, a second end among them."""
    rest = b"MAIL FROM:<a@example.com>\r\n\r\n.\r\n\0"
    stage = DataStage()
    assert stage.feed(b"a\r\n.\r\n" + rest) == b"a\r\n"
    assert (stage.complete, stage.rest, stage.octets) == (True, rest, 3)


def test_data_without_an_end_is_never_complete() -> None:
    """A dot at the end of what came so far is not the end."""
    stage, content, _ = run([b"a\r\n", b".", b"\r"])
    assert (content, stage.complete) == (b"a", False)


MEGABYTE = 1 << 20


@pytest.mark.parametrize("flood", [b"\r", b"\0", b".", b"\n", b"\0.", b"\r\0", b"\n\r", b"\n\0.", b"\r\r\n"])
@pytest.mark.parametrize("step", [1 << 12, MEGABYTE + 3])
def test_data_flooded_with_line_ends_nuls_or_dots_is_held_back_only_a_little(flood: bytes, step: int) -> None:
    """Memory and work stay bounded for a megabyte of what could become an end, and no hop sees two messages."""
    stream = b"a\r\n" + flood * (MEGABYTE // len(flood))
    stage = DataStage()
    contents = []
    for piece in cuts(stream, range(step, len(stream), step)):
        contents.append(stage.feed(piece))
        assert len(contents[-1]) > len(piece) // 3 - 3000
    contents.append(stage.feed(b"\r\n.\r\n"))
    assert len(contents[-1]) < 3000
    assert stage.complete
    check_every_hop_sees_one_message(b"".join(contents))


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r\r\n"])
@pytest.mark.parametrize("behind", [0, 1, 1500])
def test_data_with_a_dot_among_many_nuls_is_one_message(line_end: bytes, behind: int) -> None:
    """However many NULs stand around a lone dot, and wherever a segment ends, a hop that drops them sees no end."""
    for before in (0, 1, 1000, 1023, 1024, 1025, 2000, 5000):
        line = b"\0" * before + b"." + b"\0" * behind
        stream = b"a" + line_end + line + line_end + b"MAIL FROM:<evil@example.com>\r\n.\r\n"
        for step in (1, 700, 1030, before + 2, 10_000):
            stage, content, _ = run(cuts(stream, range(step, len(stream), step)))
            assert stage.complete
            check_every_hop_sees_one_message(content)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb\n\nc", b"a\r\nb\r\n\r\nc"),
        (b"a\r\r\nb", b"a\r\nb"),
        (b"a\rb\r", b"a b "),
        (b"\n\r\n\r", b"\r\n\r\n "),
    ],
)
def test_mended_line_ends_are_crlf_alone(text: bytes, mended: bytes) -> None:
    """A file gets the line ends that a message has on its way."""
    assert mend_line_ends(text) == mended
