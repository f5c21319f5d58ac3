"""What the tests of the content steps share: messages, templates, and the steps without a process of their own."""

from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from proxy.compose import edits as editing
from proxy.compose import html_steps, transfer
from proxy.compose.edits import Slot
from proxy.compose.markup import tags
from proxy.compose.steps import Composed, Job, Options, finish, html_work, plan
from proxy.compose.work import HtmlWork

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.html"))
ALL = Options(inline_css=True, track_opens=True, track_clicks=True)
TEXT_ONLY = Options(inline_css=False, track_opens=False, track_clicks=False)
NOTHING = Options(inline_css=False, track_opens=False, track_clicks=False, text_part=False)


def only(step: str) -> Options:
    """Switch on one step."""
    return Options(**{name: name == step for name in ("inline_css", "track_opens", "track_clicks", "text_part")})


def message(
    html: str | bytes, encoding: str = "quoted-printable", charset: str | None = "utf-8", extra: str = ""
) -> bytes:
    """Write a message that is nothing but HTML."""
    octets = html.encode() if isinstance(html, str) else html
    parameter = f"; charset={charset}" if charset else ""
    head = (
        f"From: a@example.invalid\r\nSubject: x\r\nMIME-Version: 1.0\r\n{extra}"
        f"Content-Type: text/html{parameter}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + transfer.encode(octets, encoding)


def multipart(kind: str, *parts: str | bytes, boundary: str = "outer", parameters: str = "") -> bytes:
    """Write a multipart with its own Content-Type field in front, without other fields."""
    octets = [part.encode() if isinstance(part, str) else part for part in parts]
    body = b"".join([b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in octets])
    head = f'Content-Type: multipart/{kind}; boundary="{boundary}"{parameters}\r\n\r\n'
    return head.encode() + body + f"--{boundary}--\r\n".encode()


def html_part(html: str = "<p>Hello</p>") -> str:
    """Write an HTML part."""
    return f"Content-Type: text/html; charset=utf-8\r\n\r\n{html}"


def template(path: Path) -> bytes:
    """Read a template as a message carries it: line ends CRLF."""
    return path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def compose(content: bytes, options: Options = ALL) -> Composed:
    """Take the steps in this process."""
    planned = plan(content, options)
    return finish(planned, html_work(planned.work)) if isinstance(planned, Job) else planned


def url(slot: Slot) -> str:
    """Give a URL that says what the slot is."""
    return f"https://track.example.invalid/{'o' if slot.kind == 'open' else 'c'}/{len(slot.target)}?a=1&b=2"


def copy(content: bytes, options: Options = ALL, give: Callable[[Slot], str] = url) -> Message:
    """Compose, write a copy, and have the parser of the standard library read it."""
    return message_from_bytes(compose(content, options).copy(give))


def shape(part: Message) -> object:
    """Give the structure of a message: a type, or a type with what is in it."""
    if not part.is_multipart():
        return part.get_content_type()
    payload = part.get_payload()
    assert isinstance(payload, list)
    return (part.get_content_subtype(), *[shape(each) for each in payload if isinstance(each, Message)])


def find(part: Message, kind: str) -> bytes:
    """Give the decoded octets of the first part of a kind."""
    payload = next(each for each in part.walk() if each.get_content_type() == kind).get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload


def text_of(html: str) -> str:
    """Give the text part made from HTML, line ends LF."""
    return find(copy(message(html), TEXT_ONLY), "text/plain").decode().replace("\r\n", "\n")


def inlined(html: str) -> str:
    """Copy style sheets into style attributes, and check that undoing it gives the HTML again."""
    octets = html.encode()
    result = html_steps.html_work(HtmlWork(octets, "utf-8", frozenset(["inline_css"])))
    assert result.failed == ()
    edited, slots = editing.apply(octets, result.edits)
    assert slots == ()
    assert editing.undo(edited, result.edits) == octets
    assert len(tags(edited)) == len(tags(octets))
    return edited.decode()
