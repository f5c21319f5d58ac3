"""The Received field that each message gets: one field, whatever the client calls itself."""

import re
from collections.abc import Iterator

import pytest

from tests.smtp_in.dialogue import QUEUED
from tests.smtp_in.site import MESSAGE, Site, site

FIELD = re.compile(
    rb"Received: from (\S+) \(\[127\.0\.0\.1\]\)\r\n\tby proxy\.example\.com with (E?SMTP)"
    rb" id ([0-9a-f]{11}[a-z2-7]{8});\r\n\t[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000\r\n"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy that all tests of this module share."""
    with site(tmp_path_factory.mktemp("received")) as started:
        yield started


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("app.example.com", "app.example.com"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("a;b(c)d", "abcd"),
        ("a<b>@c", "abc"),
        ('"x\\"', "x"),
        ("=?utf-8?q?x?=", "utf-8qx"),
        ("()", "unknown"),
        ("x" * 255, "x" * 100),
    ],
)
@pytest.mark.parametrize("verb", ["EHLO", "HELO"])
def test_name_of_the_client_cannot_break_the_field(here: Site, verb: str, name: str, written: str) -> None:
    """Characters that mean something in the field, or to who reads it, are left out; HELO is SMTP and not ESMTP."""
    here.forget()
    with here.client(extended=False) as client:
        assert client.say(f"{verb} {name}").startswith("250")
        assert client.data(MESSAGE) == QUEUED
    content = here.upstream.taken[0].content
    match = FIELD.match(content)
    assert match is not None, content
    assert match[1].decode() == written
    assert match[2] == (b"ESMTP" if verb == "EHLO" else b"SMTP")
    assert here.lines()[0]["id"] == match[3].decode()
    assert content[match.end() :] == MESSAGE[:-3]


def test_field_stands_in_front_and_those_of_other_hops_stay(here: Site) -> None:
    """Each hop adds its own on top (RFC 5321, 4.4)."""
    here.forget()
    before = b"Received: from a.example by b.example; Fri, 27 Nov 2026 09:00:00 +0000\r\n"
    with here.client() as client:
        assert client.data(before + MESSAGE) == QUEUED
    content = here.upstream.taken[0].content
    match = FIELD.match(content)
    assert match is not None
    assert content[match.end() :] == before + MESSAGE[:-3]
