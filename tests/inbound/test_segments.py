"""
Every fixture, cut at every point of its control fields and of its end: the same octets reach the route, and the same
decision the app.

The cuts of ``tests/relay/test_content`` go through sockets, where two pieces may arrive as one; here each piece is
read by itself.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import pytest

from proxy import rulebook
from proxy.inbound.auth import Credentials
from proxy.inbound.content import StreamedContent
from proxy.inbound.message import Submission, receive
from proxy.inbound.reader import ByteReader
from proxy.inbound.service import MessageLimits, Service
from proxy.inbound.tls import Certificates
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.mail.reply import Reply
from proxy.record.log import Log
from proxy.record.metrics import Metrics
from proxy.route import About, Capabilities, ClientGoneError, Content, Sent
from proxy.settings import Tls, load
from tests.fixtures.cases import CASES, Case

END = b".\r\n"
TAKEN = Reply(250, "2.0.0", "taken")
LIMITS = MessageLimits(
    recipients=25,
    refuse_excess=True,
    hops=30,
    message_octets=1_000_000,
    header_octets=100_000,
    header_fields=1000,
    idle_seconds=60,
    refuse_bare_newline=False,
)


class Nothing:
    """Where log lines go."""

    def write(self, _data: bytes) -> int:
        """Forget them."""
        return 0


class Hop:
    """
    A route and its transaction: what is behind receiving.

    Attributes:
        octets: All that was sent on; None while nothing was.
        section_octets: How much of that is the header section, as it was told.
    """

    capabilities = Capabilities()

    def __init__(self) -> None:
        self.octets: bytes | None = None
        self.section_octets = 0

    async def begin(self, _envelope: Envelope) -> "Hop":
        """Take every message."""
        return self

    async def recipient(self, _address: str) -> Reply:
        """Take everybody."""
        return TAKEN

    async def send(self, head: bytes, content: Content, about: About) -> Sent:
        """Keep what comes."""
        octets, self.section_octets = head, about.section_octets
        while not content.complete:
            octets += await content.read()
        self.octets = octets
        return Sent(TAKEN, "accepted")

    def abandon(self) -> None:
        """Nothing to give up."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Service]:
    """Makes what a message needs on its way in, once for each set of rule settings."""
    folder, metrics = tmp_path_factory.mktemp("segments"), Metrics("test")

    @cache
    def make(rules: str) -> Service:
        config = folder / "settings.yaml"
        values = {"rules": json.loads(rules), "relay": {"host": "smtp.example.com"}}
        config.write_text(json.dumps(values), encoding="utf-8")
        return Service(
            hostname="proxy.example.com",
            engine=rulebook.RuleBook(load(config, {})).engine,
            route=Hop(),
            credentials=Credentials((), ()),
            certificates=Certificates(Tls(), folder, "proxy.example.com"),
            limits=LIMITS,
            connections=1,
            log=Log("error", "json", Nothing()),
            metrics=metrics,
            new_id=lambda: "id",
            new_message_id=lambda: "id.1",
        )

    return make


async def received(service: Service, case: Case, pieces: Sequence[bytes]) -> tuple[str, bytes | None]:
    """
    Receive a message in pieces, each read by itself.

    Returns:
        The reply, and what was sent on without our Received field.
    """
    reader, left, hop = ByteReader(), iter(pieces), Hop()

    async def more(_began: float) -> None:
        piece = next(left, b"")
        if not piece:
            raise ClientGoneError
        reader.feed(piece)

    submission = Submission(
        id="id.1",
        session_id="id",
        address="127.0.0.1",
        client="app.example.com",
        listener="127.0.0.1:0",
        protocol="ESMTP",
        login=None,
        provider=case.provider,
        envelope=Envelope(case.reverse_path, case.recipients),
        began=0.0,
    )
    content = StreamedContent(reader, more, LIMITS.message_octets, refuse_bare_newline=False)
    reply = await receive(service, submission, hop, content)
    assert next(left, None) is None, "the end was found too early"
    assert hop.octets is None or hop.section_octets == HeaderSection.split(hop.octets).end
    return str(reply), None if hop.octets is None else without_received(hop.octets)


def without_received(octets: bytes) -> bytes:
    """Take our field, with its date, out."""
    start = octets.index(b"Received: from app.example.com ([127.0.0.1])\r\n")
    end = octets.index(b"\r\n", start) + 2
    while octets[end : end + 1] == b"\t":
        end = octets.index(b"\r\n", end) + 2
    return octets[:start] + octets[end:]


def control_fields(service: Service, case: Case, stream: bytes) -> Iterator[range]:
    """Where the fields are that will be gone."""
    section = HeaderSection.split(stream)
    envelope = Envelope(case.reverse_path, case.recipients)
    removed = {name.lower() for name in service.engine.translate(section, envelope, case.provider).removed}
    at = section.start
    for each in section:
        if each.name.lower() in removed:
            yield range(at, at + len(each.raw) + 1)
        at += len(each.raw)


def cuts(stream: bytes, fields: Iterable[range]) -> Iterator[list[bytes]]:
    """Every split of these parts, of the blank line, and of the terminator in two and in three; and single octets."""
    blank, tail = stream.index(b"\r\n\r\n"), len(stream) - len(b"\r\n" + END)
    points = {point for each in (*fields, range(blank, blank + 5), range(tail, len(stream))) for point in each}
    for point in sorted(points):
        yield [piece for piece in (stream[:point], stream[point:]) if piece]
    for first in range(tail, len(stream)):
        for second in range(first + 1, len(stream)):
            yield [stream[:first], stream[first:second], stream[second:]]
    yield [stream[index : index + 1] for index in range(len(stream))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_fixture_cut_at_any_point_is_received_all_the_same(case: Case, serving: Callable[[str], Service]) -> None:
    """Inside a field's name, its fold, its encoded word, its JSON, the blank line, the dot: nothing depends on it."""
    lines = case.path.read_bytes().split(b"\r\n")
    stream = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + END
    here = serving(case.rules)
    whole = await received(here, case, [stream])
    expected = case.beside(".expected.eml")
    assert whole[0] == (str(TAKEN) if expected.exists() else case.beside(".error").read_text("utf-8").strip())
    for pieces in cuts(stream, control_fields(here, case, stream)):
        assert await received(here, case, pieces) == whole, pieces
