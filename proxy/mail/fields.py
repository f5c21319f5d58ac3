"""
The header section of a message: ordered, repeatable, case-blind, and byte-preserving.

Input is text whose only line end is CRLF (``content`` sees to that). A field keeps the bytes it came with, folding
and odd spacing included; what is looked at is found by name, and nothing else is decoded.

Source: RFC 5322, 2.2 and 4.5 (a blank before the colon is obsolete but lawful).
"""

import re
from collections.abc import Collection, Iterator
from itertools import accumulate

from attrs import frozen

# Possessive, and bound to the beginning of a line: a search must not try every octet of a long line anew. The last
# repeat is not, and need not be: before Python 3.11.5 such a one of several parts ends behind what it could not match.
_FIELD = re.compile(rb"^([\x21-\x39\x3b-\x7e]++)[ \t]*+:[^\n]*+\n(?:[ \t][^\n]*+\n)*", re.MULTILINE)
_FIELDS = re.compile(rb"(" + _FIELD.pattern + rb")", re.MULTILINE)
_MAILBOX_LINE = re.compile(rb">?From [^\n]*\n")


@frozen
class HeaderField:
    """
    One header field as it stands in the message.

    Args:
        raw: Name, colon, value and folding, with the final CRLF.
        name: The name as written, ASCII.
    """

    raw: bytes
    name: str

    @property
    def value(self) -> bytes:
        """The value, unfolded (RFC 5322, 2.2.3: only the CRLF goes, the blank after it stays), blanks around it cut."""
        return value(self.raw)


class HeaderSection:
    """
    The header section as bytes plus the place of each field; fields are cut out only when asked for.

    Made by :meth:`split`. ``keys[i]`` is the lower-case name of field *i*.
    """

    __slots__ = ("_ends", "end", "keys", "raw", "start")

    def __init__(self, raw: bytes, start: int, end: int, keys: list[bytes], ends: list[int]) -> None:
        self.raw = raw
        self.start = start
        self.end = end
        self.keys = keys
        self._ends = ends  # of the line before the first field, and of each field

    @classmethod
    def split(cls, data: bytes) -> "HeaderSection":
        """
        Find the header section at the head of a message.

        It ends before the first line that is no field: the blank line, or, in a damaged message, whatever else; next
        hops take such a line for the start of the body, so it is not ours to touch. A first line ``From …`` (mbox)
        is kept in front of the section, where other mail software expects it.

        Args:
            data: The message or its head; lines end with CRLF.

        Returns:
            The section; ``data[section.end:]`` is the rest, the separating blank line included.
        """
        mailbox_line = _MAILBOX_LINE.match(data) if data.startswith((b"From ", b">From ")) else None
        start = mailbox_line.end() if mailbox_line else 0
        blank_line = data.find(b"\r\n\r\n", start) + 2
        if blank_line > 1:  # all fields at one go, if there is nothing else in front of the blank line
            pairs: list[tuple[bytes, bytes]] = _FIELDS.findall(data, start, blank_line)
            ends = list(accumulate([len(raw) for raw, _ in pairs], initial=start))
            if ends[-1] == blank_line:
                return cls(data, start, blank_line, [name.lower() for _, name in pairs], ends)
        keys: list[bytes] = []
        ends = [start]
        while found := _FIELD.match(data, ends[-1]):
            keys.append(found[1].lower())
            ends.append(found.end())
        return cls(data, start, ends[-1], keys, ends)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[HeaderField]:
        return (self[index] for index in range(len(self.keys)))

    def __getitem__(self, index: int) -> HeaderField:
        raw = self.field(index)
        return HeaderField(raw, raw[: raw.index(b":")].rstrip(b" \t").decode("ascii"))

    def name(self, index: int) -> str:
        """The name of field *index* as written."""
        start = self._ends[index]
        return self.raw[start : self.raw.index(b":", start)].rstrip(b" \t").decode("ascii")

    def field(self, index: int) -> bytes:
        """Field *index* as it stands: name, colon, value and folding, with the final CRLF."""
        return self.raw[self._ends[index] : self._ends[index + 1]]

    def value(self, index: int) -> bytes:
        """The value of field *index*, as :attr:`HeaderField.value`."""
        return value(self.field(index))

    def edited(self, remove: Collection[int], added: bytes, at: int | None = None) -> bytes:
        """
        Write the section without some fields and with new ones.

        Args:
            remove: Indices of fields to leave out.
            added: Whole fields to add, each with its CRLF.
            at: Index of the field before which *added* goes; None for the end of the section.

        Returns:
            The new section, mbox line included, without the separating blank line.
        """
        pieces: list[bytes] = []
        kept_from = 0
        for index in sorted({*remove} if at is None else {*remove, at}):
            start, end = self._ends[index], self._ends[index + 1]
            pieces.append(self.raw[kept_from:start])
            if index == at:
                pieces.append(added)
            kept_from = end if index in remove else start
        pieces.append(self.raw[kept_from : self.end])
        if at is None:
            pieces.append(added)
        return b"".join(pieces)


def value(raw: bytes) -> bytes:
    """Give the value of a field, unfolded, as :attr:`HeaderField.value`."""
    return raw.partition(b":")[2].replace(b"\r\n", b"").strip(b" \t")
