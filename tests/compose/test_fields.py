"""The header section of a message that is kept: what is read, what leaves, and what is remembered of it."""

from datetime import UTC, datetime

from proxy.compose import fields
from proxy.compose.fields import Wishes, prepare
from proxy.mail.fields import HeaderSection

NOW = datetime(2026, 11, 26, tzinfo=UTC)
KEPT = b"Date: x\r\nMessage-ID: <x@x>\r\n"


def prepared(text: bytes) -> fields.Prepared:
    """Prepare a section that has what would be added."""
    return prepare(HeaderSection.split(text + KEPT + b"\r\n"), "id@example.com", NOW)


def test_first_value_that_is_not_empty_counts() -> None:
    """An empty field says nothing, wherever it stands."""
    found = prepared(
        b"X-Cmail-GroupName: \r\nX-Cmail-GroupName: a\r\nx-cmail-groupname: b\r\nX-Cmail-TrackOpens: No\r\n"
    )
    assert (found.head, found.wishes) == (KEPT, Wishes("a", track_opens=False))


def test_fields_of_the_platform_that_nobody_knows_leave_and_nothing_is_remembered_of_them() -> None:
    """Their names are the sender's to choose, in any number and size."""
    before = fields._known_wishes.cache_info().currsize
    for number in range(100):
        assert prepared(b"X-Cmail-%d%s: a\r\n" % (number, b"a" * 100)) == fields.Prepared(KEPT, Wishes(), "")
    assert fields._known_wishes.cache_info().currsize <= before + 1


def test_long_values_are_read_and_not_remembered() -> None:
    """The limit is in octets."""
    before = fields._known_wishes.cache_info().currsize
    group = prepared(b"X-Cmail-GroupName: " + b"g" * 2000 + b"\r\n").wishes.group
    assert group is not None
    assert group.startswith("ggg")
    assert fields._known_wishes.cache_info().currsize == before
