"""Messages for later: held until their time, sent earlier or given up by hand, and sent at once when it is past."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.deliver.site import DeliverSite, html_message, message, send, site

SOON_SECONDS = 3
LATER = datetime(2100, 1, 1, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def sendgrid(at: datetime) -> bytes:
    """SendGrid's field: seconds since the epoch."""
    return b'X-SMTPAPI: {"category": "later", "send_at": %d}' % int(at.timestamp())


def mandrill(at: datetime) -> bytes:
    """Mandrill's field: UTC, without saying so."""
    return f"X-MC-SendAt: {at:%Y-%m-%d %H:%M:%S}".encode()


def mailgun(at: datetime) -> bytes:
    """Mailgun's field: as in Date."""
    return b"X-Mailgun-Deliver-By: " + format_datetime(at).encode()


FIELDS = pytest.mark.parametrize("field", [sendgrid, mandrill, mailgun], ids=lambda field: field.__name__)
Field = Callable[[datetime], bytes]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliverSite]:
    """A proxy for all of these."""
    with site(tmp_path_factory.mktemp("schedule")) as running:
        yield running


def soon() -> datetime:
    """A time that is still to come when a message was accepted, in whole seconds as the fields have it."""
    return datetime.fromtimestamp(int(time.time()) + SOON_SECONDS, UTC)


def shown(at: datetime) -> str:
    """A time as commands print it."""
    return f"{at:%Y-%m-%d %H:%M:%SZ}"


def test_three_providers_times_are_kept(here: DeliverSite) -> None:
    """Each message waits for its time, and is sent then, in one attempt, without the field that said so."""
    at = soon()
    held = {here.send(message(field(at)), "ann@example.net") for field in (sendgrid, mandrill, mailgun)}
    for copy in map(here.only, held):
        assert copy.at >= at.timestamp()
        assert copy.content == message()
    for message_id in held:
        (event,) = here.logged("attempt", message_id)  # said once the store knows of it
        assert event["attempt"] == 1
        assert event["seconds"] >= 0
    assert not held & set(here.waiting())


@FIELDS
def test_message_for_later_is_listed_and_not_delivered(here: DeliverSite, field: Field) -> None:
    """What is for another day stays in the queue, with its time, and nobody has it."""
    message_id = here.send(message(field(LATER)), "ann@example.net", "bob@example.net")
    item = here.waiting()[message_id]
    assert item["not_before"] == LATER.timestamp()
    assert [each["next_attempt_at"] for each in item["recipients"]] == [LATER.timestamp()] * 2
    code, out, _ = here.command("queue", "list")
    assert code == 0
    assert f"    ann@example.net  next attempt {shown(LATER)}, 0 made\n" in out
    history = here.told("message", "show", message_id)
    kinds = [(event["kind"], event["detail"]) for event in history["events"]]
    assert kinds[1:] == [("held", "2100-01-01T00:00:00+00:00")]
    here.only(here.send(message()))  # the queue has looked since
    assert not [copy for copy in here.copies() if copy.id == message_id]


@FIELDS
def test_time_that_is_past_means_at_once(here: DeliverSite, field: Field) -> None:
    """An app whose clock is behind, or that was held up, has its message sent now."""
    message_id = here.send(message(field(PAST)))
    here.only(message_id)
    history = here.told("message", "show", message_id)
    assert [event["kind"] for event in history["events"]] == ["received", "delivered"]
    assert history["item"]["not_before"] == 0


def test_time_that_does_not_parse_means_at_once(here: DeliverSite) -> None:
    """A time is never guessed; the message goes, and the log says what was wrong."""
    message_id = here.send(message(b"X-MC-SendAt: next tuesday"))
    assert here.only(message_id).content == message()
    (event,) = here.logged("message", message_id)
    assert event["remarks"] == ["invalid_value: X-MC-SendAt: deliver_at not set: not a time"]


def test_time_is_no_loss_in_this_route(here: DeliverSite) -> None:
    """What the relay has to report as lost is kept here, so nothing is reported."""
    message_id = here.send(message(mandrill(LATER)))
    (event,) = here.logged("message", message_id)
    assert event["lost"] == []
    (queued,) = here.logged("queued", message_id)
    assert queued["not_before"] == LATER.timestamp()


def test_queue_retry_sends_it_now(here: DeliverSite) -> None:
    """An operator may send a message for later at once, for all its recipients; its figures are not odd by that."""
    content = html_message(b"<body>Hello</body>\r\n", mandrill(LATER), b"X-Cmail-GroupName: retried")
    message_id = here.send(content, "ann@example.net", "bob@example.net")
    assert here.command("queue", "retry", message_id) == (0, "due now: 2 recipients\n", "")
    found = here.delivered(message_id, 2)
    assert found["ann@example.net"].beacons != found["bob@example.net"].beacons
    attempts = here.logged("attempt", message_id, 2)  # said once the store knows of them
    assert message_id not in here.waiting()
    kinds = [event["kind"] for event in here.told("message", "show", message_id)["events"]]
    assert kinds == ["received", "held", "retried", "delivered", "delivered"]
    here.wait_for_figures("retried", received=1, sent=2, delivered=2, deferred=0)
    assert [each["seconds"] >= 0 for each in attempts] == [True, True]
    assert here.command("queue", "retry", message_id) == (
        1,
        "",
        f"cmail-proxy: no message {message_id} that waits; `cmail-proxy queue list` shows those that do\n",
    )


def test_queue_remove_gives_it_up(here: DeliverSite) -> None:
    """A message that was removed is sent to nobody, and its record says who did it; only messages that wait can be."""
    message_id = here.send(message(mandrill(LATER), b"X-Cmail-GroupName: removed"), "ann@example.net")
    assert here.command("queue", "remove", message_id) == (0, "removed: 1 recipient\n", "")
    assert message_id not in here.waiting()
    history = here.told("message", "show", message_id)
    assert [(event["kind"], event["detail"]) for event in history["events"]][2:] == [("removed", "by hand")]
    assert [each["state"] for each in history["item"]["recipients"]] == ["removed"]
    gone = f"cmail-proxy: no message {message_id} that waits; `cmail-proxy queue list` shows those that do\n"
    assert here.command("queue", "remove", message_id) == (1, "", gone)
    assert here.command("queue", "retry", message_id) == (1, "", gone)
    here.wait_for_figures("removed", received=1, sent=1, delivered=0, bounced=0)
    here.only(here.send(message()))
    assert not [copy for copy in here.copies() if copy.id == message_id]


def test_message_for_later_outlives_a_restart(tmp_path: Path) -> None:
    """What waits is on disk: the program that is started next sends it at its time, by the links it was promised."""
    with site(tmp_path) as first, first.client() as client:
        at = soon()
        soon_due = send(client, message(sendgrid(at)), "ann@example.net")
        later = send(client, html_message(b"<body>Hello</body>\r\n", mandrill(LATER)), "bob@example.net")
        first.proxy.event("queued", 2)
    with site(tmp_path) as second:
        opened = second.proxy.event("queue_opened")
        assert opened["pending"] in (1, 2)  # 1 where the first program was still there when the time came
        assert second.only(soon_due).at >= at.timestamp()
        assert list(second.waiting()) == [later]
        second.command("queue", "retry", "--all")
        assert second.get(second.only(later).beacons[0]).status == 200
