"""Replies: codes that agree, a parser that takes any pieces, nothing of a peer's that could do harm."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.mail.reply import MAX_LINE_OCTETS, MAX_LINES, Reply, ReplyError, ReplyParser


def whole(stream: bytes) -> list[Reply]:
    return ReplyParser().feed(stream)


def byte_by_byte(stream: bytes) -> list[Reply]:
    parser = ReplyParser()
    return [reply for octet in stream for reply in parser.feed(bytes((octet,)))]


BOTH = pytest.mark.parametrize("read", [whole, byte_by_byte])


@pytest.mark.parametrize(("code", "enhanced"), [(250, "2.0.0"), (354, ""), (421, "4.3.2"), (554, "5.6.0"), (220, "")])
def test_reply_with_codes_of_one_class_is_made(code: int, enhanced: str) -> None:
    """Reply code and enhanced status code agree, or there is no enhanced one."""
    assert Reply(code, enhanced, "x").enhanced == enhanced


@pytest.mark.parametrize(
    ("code", "enhanced"), [(250, "5.0.0"), (250, "4.0.0"), (451, "5.4.1"), (550, "2.1.5"), (354, "2.0.0")]
)
def test_reply_with_codes_of_two_classes_cannot_be_made(code: int, enhanced: str) -> None:
    """Transient and permanent never disagree, because such a reply does not exist."""
    with pytest.raises(ValueError, match=f"^enhanced status code {enhanced} does not fit reply code {code}$"):
        Reply(code, enhanced, "x")


@pytest.mark.parametrize(
    ("code", "kinds"),
    [(200, "positive"), (299, "positive"), (354, "intermediate"), (421, ""), (451, ""), (500, "permanent")],
)
def test_reply_knows_its_class(code: int, kinds: str) -> None:
    """Done, go on, try later, give up: one of the four."""
    reply = Reply(code, "", "x")
    assert [name for name in ("positive", "intermediate", "permanent") if getattr(reply, name)] == kinds.split()


@BOTH
@pytest.mark.parametrize(
    ("stream", "replies"),
    [
        (b"", []),
        (b"250 2.1.5 OK\r\n", [Reply(250, "2.1.5", "OK")]),
        (b"250 OK\r\n", [Reply(250, "", "OK")]),
        (b"250\r\n", [Reply(250, "", "")]),
        (b"250 \r\n", [Reply(250, "", "")]),
        (b"250 2.0.0\r\n", [Reply(250, "2.0.0", "")]),
        (b"250 2.0.0  OK\r\n", [Reply(250, "2.0.0", "OK")]),
        (b"250 OK\n", [Reply(250, "", "OK")]),
        (b"250 OK\r\r\n", [Reply(250, "", "OK")]),
        (b"220 mail.example.com ESMTP\r\n", [Reply(220, "", "mail.example.com ESMTP")]),
        (b"354 Go on\r\n", [Reply(354, "", "Go on")]),
        (b"354 3.0.0 Go on\r\n", [Reply(354, "", "3.0.0 Go on")]),
        (b"354 2.0.0 Go on\r\n", [Reply(354, "", "Go on")]),
        (b"250-a\r\n250-SIZE 1\r\n250 PIPELINING\r\n", [Reply(250, "", "a\nSIZE 1\nPIPELINING")]),
        (b"250-\r\n250\r\n", [Reply(250, "", "\n")]),
        (b"550-5.1.1 No\r\n550 5.1.1 such user\r\n", [Reply(550, "5.1.1", "No\nsuch user")]),
        (b"550-No\r\n550 5.1.1 such user\r\n", [Reply(550, "5.1.1", "No\nsuch user")]),
        (b"550-5.1.1 No\r\n550 5.7.1 such user\r\n", [Reply(550, "5.1.1", "No\nsuch user")]),
        (b"451 5.7.1 Later\r\n", [Reply(451, "", "Later")]),
        (b"550-4.2.2 Full\r\n550 5.2.2 for good\r\n", [Reply(550, "5.2.2", "Full\nfor good")]),
        (b"250 2.0.0OK\r\n", [Reply(250, "", "2.0.0OK")]),
        (b"250 2.0 OK\r\n", [Reply(250, "", "2.0 OK")]),
        (b"250 2.1000.0 OK\r\n", [Reply(250, "", "2.1000.0 OK")]),
        (b"250 a\r\n451 b\r\n250 c\r\n", [Reply(250, "", "a"), Reply(451, "", "b"), Reply(250, "", "c")]),
    ],
)
def test_parser_reads_the_stream_whole_and_byte_by_byte(
    read: Callable[[bytes], list[Reply]], stream: bytes, replies: list[Reply]
) -> None:
    """Segmentation makes no difference; of two codes that disagree the reply code counts."""
    assert read(stream) == replies


def test_parser_keeps_what_is_behind_a_reply_for_later() -> None:
    """The beginning of the next reply waits for its end."""
    parser = ReplyParser()
    assert parser.feed(b"250 a\r\n250-b\r\n25") == [Reply(250, "", "a")]
    assert parser.feed(b"0 c\r") == []
    assert parser.feed(b"\n") == [Reply(250, "", "b\nc")]


@BOTH
@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"hello\r\n", r"no SMTP reply: b'hello\r\n'"),
        (b"\r\n", r"no SMTP reply: b'\r\n'"),
        (b"25 OK\r\n", r"no SMTP reply: b'25 OK\r\n'"),
        (b"2500 OK\r\n", r"no SMTP reply: b'2500 OK\r\n'"),
        (b"250_OK\r\n", r"no SMTP reply: b'250_OK\r\n'"),
        (b" 250 OK\r\n", r"no SMTP reply: b' 250 OK\r\n'"),
        (b"150 OK\r\n", r"no SMTP reply: b'150 OK\r\n'"),
        (b"650 OK\r\n", r"no SMTP reply: b'650 OK\r\n'"),
        (b"250-a\r\n451 b\r\n", r"no SMTP reply: b'451 b\r\n'"),
        (b"250-a\r\nb\r\n", r"no SMTP reply: b'b\r\n'"),
        (b"HTTP/1.1 400 " + b"x" * 100 + b"\r\n", f"no SMTP reply: b'HTTP/1.1 400 {'x' * 67}'"),
    ],
)
def test_parser_refuses_what_is_no_reply(read: Callable[[bytes], list[Reply]], stream: bytes, reason: str) -> None:
    """Nonsense, or lines of one reply whose codes differ, end the connection with a bounded text for the log."""
    with pytest.raises(ReplyError) as error:
        read(stream)
    assert str(error.value) == reason


@pytest.mark.parametrize("nonsense", [b"hello\r\n", b"250-a\r\n451 b\r\n", b"250 " + b"x" * 5000, b"250-x\r\n" * 101])
def test_parser_gives_the_replies_before_the_nonsense_with_the_error(nonsense: bytes) -> None:
    """A message that was accepted stays accepted, whatever the peer says behind it."""
    with pytest.raises(ReplyError) as error:
        whole(b"250 2.0.0 a\r\n451 4.3.0 b\r\n" + nonsense)
    assert list(error.value.replies) == [Reply(250, "2.0.0", "a"), Reply(451, "4.3.0", "b")]


def test_parser_knows_whether_a_reply_has_begun() -> None:
    """Half a line or half a reply is pending; before and after a whole one nothing is."""
    parser = ReplyParser()
    states = [parser.pending]
    for piece in (b"25", b"0-a\r\n", b"250 b\r\n", b"250 c\r\n"):
        parser.feed(piece)
        states.append(parser.pending)
    assert states == [False, True, True, False, False]


@BOTH
def test_parser_refuses_a_line_over_the_limit(read: Callable[[bytes], list[Reply]]) -> None:
    """A line is bounded, whether its end comes with it, later or never."""
    text = f"^a reply line of more than {MAX_LINE_OCTETS} octets$"
    longest = b"250 " + b"x" * (MAX_LINE_OCTETS - 6) + b"\r\n"
    assert [reply.code for reply in read(longest)] == [250]
    with pytest.raises(ReplyError, match=text):
        read(b"250 " + b"x" * MAX_LINE_OCTETS)
    with pytest.raises(ReplyError, match=text):
        read(b"250 " + b"x" * MAX_LINE_OCTETS + b"\r\n")


def test_parser_flooded_with_carriage_returns_ends() -> None:
    """The bound on a line comes before any look at it, so a next hop cannot stall the process."""
    with pytest.raises(ReplyError, match=f"^a reply line of more than {MAX_LINE_OCTETS} octets$"):
        ReplyParser().feed(b"250 " + b"\r" * 2_000_000 + b"x\r\n")


@BOTH
def test_parser_refuses_a_reply_of_too_many_lines(read: Callable[[bytes], list[Reply]]) -> None:
    """A reply is bounded too, and a new one may be as long again."""
    longest = b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n"
    assert [reply.text.count("\n") + 1 for reply in read(longest * 2)] == [MAX_LINES, MAX_LINES]
    with pytest.raises(ReplyError, match=f"^a reply of more than {MAX_LINES} lines$"):
        read(b"250-x\r\n" * (MAX_LINES + 1))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"250 a\x00b\r\n", "a?b"),
        (b"250 a\rMAIL FROM:<x>\r\n", "a?MAIL FROM:<x>"),
        (b"250 \x1b[31mred\x7f\r\n", "?[31mred?"),
        (b"250 caf\xc3\xa9\r\n", "caf?"),
        (b"250 a\tb\r\n", "a?b"),
        (b"250 2.0.0\x00OK\r\n", "2.0.0?OK"),
    ],
)
def test_parser_lets_no_control_character_through(line: bytes, text: str) -> None:
    """What a next hop says is printable ASCII when it goes to the app or the log."""
    assert [reply.text for reply in whole(line)] == [text]


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=30)), min_size=1, max_size=4), st.data())
@example([(True, b"\r5.1.1 \r")], None)
def test_parser_output_is_safe_for_any_text_in_any_pieces(
    lines: list[tuple[bool, bytes]], data: st.DataObject | None
) -> None:
    """Whatever the peer writes, each reply goes on as whole printable lines, which read back with the same codes."""
    stream = b"".join(b"550%c%s\r\n" % (b"- "[last], text.replace(b"\n", b"")) for last, text in lines) + b"550 end\r\n"
    replies = whole(stream)
    cut = data.draw(st.integers(0, len(stream))) if data else 1
    parser = ReplyParser()
    assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == replies == byte_by_byte(stream)
    for reply in replies:
        for written in (reply, reply.for_client()):
            octets = written.to_bytes()
            assert octets.endswith(b"\r\n")
            assert all(line.isascii() and line.decode().isprintable() for line in octets[:-2].split(b"\r\n"))
            assert [each.code for each in whole(octets)] == [550]
        assert whole(reply.for_client().to_bytes())[0].enhanced == reply.for_client().enhanced


def test_parser_cuts_a_long_line_to_what_may_be_passed_on() -> None:
    """RFC 5321 allows 512 octets a line; the longer text of a lenient read is cut before it goes to the app."""
    reply = whole(b"550 5.1.1 " + b"x" * 3000 + b"\r\n")[0]
    assert (reply.enhanced, len(reply.text)) == ("5.1.1", 480)
    assert len(reply.to_bytes()) <= 512


@pytest.mark.parametrize(
    ("reply", "octets"),
    [
        (Reply(250, "2.0.0", "OK"), b"250 2.0.0 OK\r\n"),
        (Reply(354, "", "Go on"), b"354 Go on\r\n"),
        (Reply(250, "", "a\nSIZE 1\nAUTH PLAIN"), b"250-a\r\n250-SIZE 1\r\n250 AUTH PLAIN\r\n"),
        (Reply(550, "5.1.1", "No\nsuch user"), b"550-5.1.1 No\r\n550 5.1.1 such user\r\n"),
        (Reply(250, "2.0.0", "caf\u00e9"), b"250 2.0.0 caf?\r\n"),
    ],
)
def test_reply_is_written_with_its_enhanced_code_on_each_line(reply: Reply, octets: bytes) -> None:
    """RFC 2034, section 4: every line of a reply carries the enhanced status code."""
    assert reply.to_bytes() == octets


@pytest.mark.parametrize(
    ("reply", "given"),
    [
        (Reply(250, "", "OK"), Reply(250, "2.0.0", "OK")),
        (Reply(452, "", "Full"), Reply(452, "4.0.0", "Full")),
        (Reply(552, "", "Full"), Reply(552, "5.0.0", "Full")),
        (Reply(550, "5.1.1", "No"), Reply(550, "5.1.1", "No")),
        (Reply(354, "", "Go on"), Reply(354, "", "Go on")),
    ],
)
def test_reply_for_a_client_has_an_enhanced_code_of_its_class(reply: Reply, given: Reply) -> None:
    """An app hears an enhanced status code on every 2yz, 4yz and 5yz, whatever the next hop left out."""
    assert reply.for_client() == given


def test_reply_as_text_is_one_line_for_the_log() -> None:
    """Codes and text, lines parted by a slash, nothing for a part that is missing."""
    assert str(Reply(550, "5.1.1", "No\nsuch user")) == "550 5.1.1 No / such user"
    assert str(Reply(354, "", "Go on")) == "354 Go on"
    assert str(Reply(250, "", "")) == "250"
