"""
The octets after 354: where the message ends, and line ends that mean the same to every hop.

Protocol without I/O: octets in, in whatever pieces they come, content out. The content keeps its transparency dots, so
it can go to the next hop as it is; :data:`END_OF_DATA` is for the caller to add.

* Only CRLF.CRLF ends the data (RFC 5321, 2.3.8 and 4.1.1.4).
* A bare LF becomes CRLF, a run of CRs before LF becomes one CRLF, any other CR becomes a blank.
* Every line that is a lone dot then, without being the end, gets a second dot; so does a dot that is alone but for
  NULs, because some servers drop NULs before they look. Nothing can be smuggled past the next hop.
* Data with CRLF only leaves exactly as it came, and is never looked at line by line: that would cost more than all
  other work on a large message.
"""

import io
import re

END_OF_DATA = b".\r\n"
_TERMINATOR = b"\r\n.\r\n"
_LINE_END = re.compile(rb"(?<!\r)\r*+\n")  # looked for only where a run of CRs begins: its length counts once
_BARE_CR = re.compile(rb"\r(?!\n)")
_LONE_DOT = re.compile(rb"^(?=\x00*+\.\x00*+\r$)", re.MULTILINE)
_MAYBE_LONE_DOT = re.compile(rb"\x00*+(\.\x00*+)?")
_MAX_HELD = 1024


def mend_line_ends(text: bytes) -> bytes:
    """Bring line ends into the one form that means the same to every hop: for messages that came as a file."""
    return _BARE_CR.sub(b" ", _LINE_END.sub(b"\r\n", text))


def has_regular_line_ends(text: bytes) -> bool:
    """Tell whether each CR and each LF is one half of a CRLF."""
    scan = io.IncrementalNewlineDecoder(None, False)
    scan.decode(text.decode("latin-1"))  # scans for line ends at memory speed; the text is not kept
    return scan.newlines in (None, "\r\n") and not text.endswith(b"\r")


class DataStage:
    """
    One message between 354 and its end.

    Attributes:
        complete: The end was seen.
        rest: Octets that came behind the end: the client's next commands.
        irregular: A bare CR or LF was met.
        octets: Size of the data so far, as received, without the end.
    """

    __slots__ = (
        "_at_line_start",
        "_held",
        "_nuls_given_out",
        "_pending",
        "_virtual",
        "complete",
        "irregular",
        "octets",
        "rest",
    )

    def __init__(self) -> None:
        self.complete = False
        self.rest = b""
        self.irregular = False
        self.octets = 0
        # The CRLF of the DATA command is the first half of the end of an empty message.
        self._pending = b"\r\n"
        self._virtual = True
        self._at_line_start = True  # or behind nothing but NULs, if so many that they were given out:
        self._nuls_given_out = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """
        Take the next octets.

        Returns:
            Content that can go on: whole lines or parts of lines, ready for the next hop. What could still become the
            end, or a lone dot, is held back (at most ``_MAX_HELD`` octets and a few).
        """
        self.octets += len(data)
        data = self._pending + data
        end = data.find(_TERMINATOR)
        if end >= 0:
            self.complete = True
            self.rest = data[end + len(_TERMINATOR) :]
            self.octets -= len(self.rest) + len(END_OF_DATA)
            content = data[: end + 2]
        else:
            keep = _held_back(data)
            self._pending = data[len(data) - keep :]
            content = data[: len(data) - keep]
        if self._virtual and content:
            self._virtual = False
            content = content[2:]
        return self._regular(content) if content or self._held else b""

    def _regular(self, content: bytes) -> bytes:
        if not self.irregular:
            if has_regular_line_ends(content):
                if not self._held and not self._nuls_given_out and b"\0" not in content:
                    self._at_line_start = content.endswith(b"\n")
                    return content
            else:
                self.irregular = True
        return self._mended(self._held + content)

    def _mended(self, text: bytes) -> bytes:
        """Mend the line ends of *text*, which follows what was given out before."""
        self._held = b""
        if not self.complete:
            body = text.rstrip(b"\r")
            if len(text) - len(body) <= _MAX_HELD:
                text, self._held = body, text[len(body) :]
        text = mend_line_ends(text)
        first_line = 0 if self._at_line_start else text.find(b"\n") + 1
        last_line = text.rfind(b"\n") + 1
        if self._at_line_start or first_line:
            text = text[:first_line] + _LONE_DOT.sub(b".", text[first_line:])
            last_line = text.rfind(b"\n") + 1
            maybe = _MAYBE_LONE_DOT.fullmatch(text, last_line)
            if maybe is not None and len(maybe[0]) <= _MAX_HELD:
                text, self._held = text[:last_line], maybe[0] + self._held
            elif maybe is not None and maybe[1]:
                # Nobody sends so many NULs for a reason: the second dot goes in before it is known to be needed.
                text = text[: maybe.start(1)] + b"." + text[maybe.start(1) :]
        if text:
            line = text[text.rfind(b"\n") + 1 :]
            self._at_line_start = not line.strip(b"\0") and (self._at_line_start or b"\n" in text)
            self._nuls_given_out = self._at_line_start and bool(line)
        return text


def _held_back(data: bytes) -> int:
    """How many octets at the end of *data* may be the beginning of the terminator."""
    for length in range(min(len(_TERMINATOR) - 1, len(data)), 0, -1):
        if data.endswith(_TERMINATOR[:length]):
            return length
    return 0
