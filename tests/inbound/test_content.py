"""Content as it streams in, with a clock of the test's own: clients that are too slow, and those that never end."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from proxy.inbound import content
from proxy.inbound.content import StreamedContent
from proxy.inbound.reader import ByteReader, ClientSilentError
from proxy.route import ClientGoneError, ContentRefusedError

HOUR = 3600.0
LIMIT = 10_000_000
LINE = b"x" * 98 + b"\r\n"


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that content is measured by."""
    given = Clock()
    monkeypatch.setattr(content, "monotonic", given)
    return given


def streamed(clock: Clock, arrivals: Iterable[tuple[float, bytes]], limit: int = LIMIT) -> StreamedContent:
    """Content that arrives in pieces, each after so many seconds; behind the last one the client is gone."""
    reader = ByteReader()
    left = iter(arrivals)

    async def more(_began: float) -> None:
        seconds, piece = next(left, (0.0, b""))
        if not piece:
            raise ClientGoneError
        clock.now += seconds
        reader.feed(piece)

    return StreamedContent(reader, more, limit, refuse_bare_newline=False)


async def read_all(found: StreamedContent) -> bytes:
    """Read a message to its end."""
    pieces = []
    while not found.complete:
        pieces.append(await found.read())
    return b"".join(pieces)


@pytest.mark.parametrize(
    ("seconds", "piece"),
    [
        pytest.param(1.0, b"x", id="an-octet-a-second"),
        pytest.param(30.0, LINE, id="a-line-each-half-minute"),
        pytest.param(179.0, LINE, id="a-line-just-before-the-limit-on-silence"),
    ],
)
@pytest.mark.parametrize("discarded", [False, True], ids=["read", "discarded"])
async def test_client_that_is_far_too_slow_from_the_start_is_dropped(
    clock: Clock, seconds: float, piece: bytes, discarded: bool
) -> None:
    """Whoever trickles holds a connection to the platform for nothing: it ends, though no single wait was too long."""
    began = clock.now
    found = streamed(clock, [(seconds, piece)] * int(HOUR / seconds))
    with pytest.raises(ClientSilentError) as caught:
        await (found.discard() if discarded else read_all(found))
    assert caught.value.reason == "too_slow"
    assert clock.now - began < HOUR / 2


def evenly() -> Iterator[tuple[float, bytes]]:
    """A hundred lines each second, for most of an hour."""
    return ((1.0, LINE * 100) for _ in range(900))


def in_bursts() -> Iterator[tuple[float, bytes]]:
    """The same in larger pieces, with the pauses of a bad line between them."""
    return ((10.0, LINE * 1000) for _ in range(90))


def at_once() -> Iterator[tuple[float, bytes]]:
    """No time passes at all."""
    return ((0.0, LINE * 100) for _ in range(900))


@pytest.mark.parametrize("arrivals", [evenly, in_bursts, at_once])
async def test_client_that_is_fast_is_never_dropped(
    clock: Clock, arrivals: Callable[[], Iterator[tuple[float, bytes]]]
) -> None:
    """Ten thousand octets a second are fast enough, however long the message takes."""
    found = streamed(clock, [*arrivals(), (1.0, b".\r\n")])
    assert await read_all(found) == LINE * 90_000


async def test_message_over_the_limit_is_refused_and_read_to_its_end(clock: Clock) -> None:
    """What is too large is discarded up to its dot, so that the session goes on in step."""
    found = streamed(clock, [*[(0.0, LINE * 100)] * 20, (0.0, b".\r\n")], limit=50_000)
    with pytest.raises(ContentRefusedError) as caught:
        await read_all(found)
    assert str(caught.value.reply) == "552 5.3.4 The message is larger than 50000 octets"
    assert await found.discard()
    assert found.complete


async def test_message_without_end_is_given_up(clock: Clock) -> None:
    """Nobody has to read for ever: behind the limit and 64 MiB more there is no more discarding."""
    mebibyte = (b"x" * 1022 + b"\r\n") * 1024
    found = streamed(clock, [(0.0, mebibyte)] * 200, limit=1000)
    with pytest.raises(ContentRefusedError):
        await found.read()
    assert not await found.discard()
    assert not found.complete
    assert 64 << 20 < found.octets < 67 << 20
