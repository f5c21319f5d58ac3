"""Promises for any octets, not for chosen ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.compose import edits as editing
from proxy.compose import stylesheet, transfer
from proxy.compose.html_steps import html_work
from proxy.compose.markup import tags
from proxy.compose.steps import Job, Options, finish, plan
from proxy.compose.work import FRAME, STEPS, HtmlResult, HtmlWork, frame_sizes, read_result, read_work
from tests.compose.support import ALL, NOTHING, compose, message, url

PIECES = st.sampled_from(
    [
        "<p>", "</p>", "<a href='https://x.invalid/'>", "</a>", '<a href="', "<b>", "</b>", "<table><tr><td>",
        "</table>",
        "<style>p{color:red}b{top:0!important}</style>", "<style>", "</style>", "@media x{p{color:blue}}", "p{", "}",
        "<!--",
        "-->", "<!--[if mso]>", "<![endif]-->", ' style="', " style=top:0", '"', "'", ">", "<", "&amp;", "&", "é",
        "\r\n",
        "<svg>", "<![CDATA[", "]]>", "</body>", "<link rel=stylesheet href=x>", "{{x}}", "\0", "<template>", "<select>",
        "<title>", "<div style='display:none'>", "</div>", "<li>", "<img alt='x'>", "\ud7ff",
    ]
)  # fmt: skip
HTML = st.lists(PIECES, max_size=25).map("".join)
MIME = st.lists(
    st.sampled_from(
        [
            b"Content-Type: multipart/mixed; boundary=a\r\n", b"Content-Type: multipart/related; boundary=b\r\n",
            b"\r\n",
            b"Content-Type: multipart/alternative; boundary=\"a b\"\r\n", b"Content-Type: text/html\r\n",
            b"--a\r\n", b"--b\r\n",
            b"--a--\r\n", b"--b--\r\n", b"--a b\r\n", b"Content-Transfer-Encoding: base64\r\n", b"<p>x <a href=http://x.y>",
            b"Content-Type: text/plain\r\n", b"From: a\r\n", b"broken\r\n", b"Content-Type:\r\n", b"=\r\n", b"abc=",
            b"Content-Transfer-Encoding: quoted-printable\r\n", b"Content-Type: text/html; charset=utf-16\r\n",
            b"\xff\r\n",
        ]
    ),
    max_size=20,
).map(b"".join)  # fmt: skip


@given(HTML, st.sampled_from(["quoted-printable", "base64", "8bit"]))
def test_undoing_the_edits_gives_the_html(html: str, encoding: str) -> None:
    """Whatever the HTML, what is not a reported edit keeps its bytes, and no tag comes or goes but the beacon."""
    octets = html.encode()
    composed = compose(message(octets, encoding))
    assert composed.failed in ((), (("inline_css", "malformed"),))
    if composed.edits:
        assert editing.undo(composed.html, composed.edits) == octets
        assert {edit.step for edit in composed.edits} <= set(composed.done)
        assert all(edit.inserted.isascii() for edit in composed.edits)
        assert len(composed.slots) == sum(edit.slot_at >= 0 for edit in composed.edits)


@given(st.binary(max_size=300))
def test_any_octets_are_html_to_the_steps(octets: bytes) -> None:
    """What is no HTML, nor text in any charset, gives a result all the same."""
    composed = compose(message(octets, "base64"))
    if composed.edits:
        assert editing.undo(composed.html, composed.edits) == octets


@given(MIME)
def test_any_message_gives_a_message(content: bytes) -> None:
    """Damaged structures are no error; without steps the message is the same; without slots it needs no URLs."""
    assert compose(content, NOTHING).copy(url) == content
    composed = compose(content)
    written = composed.copy(url)
    if not composed.done:
        assert written == content
    inlined = compose(content, Options(True, False, False))
    assert inlined.slots == ()


@given(HTML)
def test_results_survive_the_pipe(html: str) -> None:
    """What a process is given and gives back is the same on both sides."""
    work = HtmlWork(html.encode(), "utf-8", frozenset(STEPS))
    assert unpacked(work.to_wire(), read_work) == work
    result = html_work(work)
    assert unpacked(result.to_wire(), lambda header, raw: read_result(header, raw, work)) == result


def unpacked(wire: bytes, read):  # type: ignore[no-untyped-def]
    header, raw = frame_sizes(wire[: FRAME.size])
    assert len(wire) == FRAME.size + header + raw
    return read(wire[FRAME.size : FRAME.size + header], wire[FRAME.size + header :])


ROW = [0, 1, 0, "x", "inline_css", "click", ""]


ROWS: list[object] = [
    1, [1], [[]], [ROW[:6]], [[-1, *ROW[1:]]], [[0, 9, *ROW[2:]]], [[0, 1, 2, *ROW[3:]]], [[True, *ROW[1:]]],
    [["0", *ROW[1:]]], [[*ROW[:3], "é", *ROW[4:]]], [[*ROW[:4], "other", "click", ""]], [[*ROW[:3], 1, *ROW[4:]]],
]  # fmt: skip


@pytest.mark.parametrize(
    "header",
    [
        b"", b"\xff", b"[]", b"{}", b"null", b"[" * 100_000,
        *[json.dumps({"edits": rows, "failed": [], "text": False}).encode() for rows in ROWS],
        b'{"edits": [], "failed": [["x", "time"]], "text": false}',
        b'{"edits": [], "failed": [["text_part", "x"]], "text": false}',
        b'{"edits": [], "failed": [["text_part"]], "text": false}',
    ],
)  # fmt: skip
def test_results_that_are_none_are_refused(header: bytes) -> None:
    """A process that was taken over by a message can say what it likes; only a result for this work is read."""
    with pytest.raises(ValueError):
        read_result(header, b"", HtmlWork(b"<p>", "utf-8", frozenset(STEPS)))


def test_frames_larger_than_any_are_refused() -> None:
    """No process makes its parent read more than a message can give."""
    with pytest.raises(ValueError, match="larger"):
        frame_sizes(FRAME.pack(2**32 - 1, 0))


def test_edits_that_do_not_fit_leave_the_message_as_it_came() -> None:
    """Overlapping edits are no result, whoever wrote them."""
    content = message("<p>x</p>")
    job = plan(content, ALL)
    assert isinstance(job, Job)
    twice = editing.Edit(0, b"<p>", b"", "inline_css")
    composed = finish(job, HtmlResult("text", (twice, twice)))
    assert composed.copy(url) == content
    assert {reason for _, reason in composed.failed} == {"crash"}


@given(st.text(alphabet="\r\n =.aF\t\0é", max_size=200), st.sampled_from(sorted(transfer.ENCODINGS)))
def test_transfer_encodings_give_back_the_octets(text: str, encoding: str) -> None:
    """Also bare line ends, blanks at line ends and dots alone on a line; no encoded line is longer than 76."""
    encoded = transfer.encode(text.encode(), encoding)
    assert transfer.decode(encoded, encoding) == text.encode()
    if encoding not in transfer.IDENTITY:
        assert transfer.longest_line(encoded) <= 76


@given(st.text(alphabet="{}()[];:/*\\'\"@!a-_<>, \n", max_size=80))
def test_any_text_is_a_style_sheet(css: str) -> None:
    """Whatever stands in it, values that are copied end what they begin."""
    for rule in stylesheet.rules(css):
        for declaration in rule.declarations:
            again = stylesheet.declarations(f"{declaration.name}: {declaration.value}; top: 0")
            assert [each.name for each in again][-1:] == ["top"]


@pytest.mark.parametrize(
    "piece", ["{", "(", "@media x{", "/*", '"', '"\\', "@a;", "a;", "a{b:c}", "url(", "p{a:b{", "a:(;", "\\", "!"]
)
def test_style_sheets_take_time_that_grows_no_faster_than_they_do(piece: str) -> None:
    """Half a megabyte of whatever never closes is read at once, or given up."""
    work = HtmlWork(
        f"<style>{piece * (500_000 // len(piece))}</style><p>x</p>".encode(), "utf-8", frozenset(["inline_css"])
    )
    html_work(work)
    assert len(tags(work.html)) >= 1
