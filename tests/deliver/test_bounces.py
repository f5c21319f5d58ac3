"""What a sender is told of a message that failed or is late, and what follows for the address."""

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from proxy.mail import dsn
from tests.deliver.plant import IMPATIENT, Plant, eventually
from tests.support.upstream import Taken, Upstream

APP = "app@example.com"


def rcpt(line: str) -> str:
    """Some addresses fail, as their names say."""
    for word, reply in (
        ("nknown", "550 5.1.1 no such user"),
        ("policy", "550 5.7.1 not from you"),
        ("late", "451 4.3.0 later"),
    ):
        if word in line:
            return reply
    return "250 2.1.5 fine"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A smarthost with such addresses."""
    with Upstream({"RCPT": rcpt}) as server:
        yield server


@pytest.fixture
def plant(upstream: Upstream, tmp_path: Path) -> Iterator[Plant]:
    """A proxy in front of it."""
    smarthost = {"host": "127.0.0.1", "port": upstream.port, "tls": "none"}
    retry = {"first_seconds": 1, "factor": 1, "warn_seconds": 1, "expire_seconds": 4}
    deliver = {"via": "smarthost", "smarthost": smarthost, "retry": retry}
    with Plant(tmp_path, deliver, first=IMPATIENT) as started:
        yield started


def sent(upstream: Upstream) -> list[Taken]:
    """What went to somebody: a pipelining client whose recipients all failed sends an empty message (RFC 2920, 3.1)."""
    return [each for each in upstream.taken if each.recipients]


def notices(upstream: Upstream) -> list[Taken]:
    """What came from the null reverse-path."""
    return [each for each in sent(upstream) if each.mail.startswith("MAIL FROM:<>")]


def read(notice: Taken) -> tuple[EmailMessage, dsn.Report]:
    """Parse a notice twice: by a parser that is not ours, and by ours."""
    message = email.message_from_bytes(notice.content, policy=email.policy.default)
    if not isinstance(message, EmailMessage):
        raise TypeError(message)
    report = dsn.parse(notice.content)
    if report is None:
        raise AssertionError(notice.content)
    return message, report


def test_failed_recipients_of_a_message_are_told_in_one_notice(plant: Plant, upstream: Upstream) -> None:
    """To the reverse-path, from the null one, in the form of RFC 3464; the delivered one is not in it."""
    message_id = plant.send("unknown@example.net", "ann@example.net", "policy@example.net")
    eventually(lambda: notices(upstream), "a notice")
    eventually(lambda: not plant.pending(), "all final")
    (notice,) = notices(upstream)
    assert notice.recipients == [f"RCPT TO:<{APP}>"]
    message, report = read(notice)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    human, status, returned = message.iter_parts()
    assert "no such user" in human.get_content()
    blocks = [block for block in status.get_payload() if not isinstance(block, str)]
    assert blocks[0]["Reporting-MTA"] == "dns; proxy.example.com"
    found = {(block["Final-Recipient"], block["Action"], block["Status"]) for block in blocks[1:]}
    assert found == {
        ("rfc822; unknown@example.net", "failed", "5.1.1"),
        ("rfc822; policy@example.net", "failed", "5.7.1"),
    }
    assert "Subject: test" in returned.as_string()
    assert report.to == APP
    assert report.queue_id == message_id
    assert {each.address for each in report.recipients} == {"unknown@example.net", "policy@example.net"}
    assert plant.kinds(message_id).count("bounce_told") == 1
    assert plant.proxy.metric("cmail_proxy_notices_total", kind="failed") == 1


def test_null_reverse_path_is_told_nothing(plant: Plant, upstream: Upstream) -> None:
    """There is nobody to tell; the record says what happened."""
    message_id = plant.send("policy@example.net", reverse_path="")
    plant.settled(message_id, "received", "bounced")
    plant.settled(plant.send("ann@example.net"), "received", "delivered")
    assert len(sent(upstream)) == 1


def test_notice_that_fails_is_told_to_nobody(plant: Plant, upstream: Upstream) -> None:
    """Never a bounce of a bounce, and no address is suppressed by one."""
    message_id = plant.send("policy@example.net", reverse_path="unknown-sender@example.com")
    eventually(lambda: "bounce_told" in plant.kinds(message_id), "told")
    notice_id = plant.history(message_id).events[-1].detail
    plant.settled(notice_id, "received", "bounced")
    eventually(lambda: not plant.pending(), "all final")
    assert not sent(upstream)
    assert plant.store(lambda store: store.suppressions()) == []


def test_late_message_is_told_once_and_then_that_it_expired(plant: Plant, upstream: Upstream) -> None:
    """A warning while it is tried, and a final notice with 4.4.7 when its time is over."""
    message_id = plant.send("late@example.net")
    eventually(lambda: plant.recipient(message_id).state.value == "bounced", "expired")
    eventually(lambda: len(notices(upstream)) == 2, "two notices")
    eventually(lambda: not plant.pending(), "all final")
    (_, warning), (_, final) = (read(each) for each in notices(upstream))
    assert [(each.action, each.status) for each in warning.recipients] == [("delayed", "4.3.0")]
    assert warning.recipients[0].will_retry_until is not None
    assert [(each.action, each.status) for each in final.recipients] == [("failed", "4.4.7")]
    assert "451 4.3.0 later" in final.recipients[0].diagnostic
    kinds = plant.kinds(message_id)
    assert kinds.count("deferred") >= 2
    assert [each for each in kinds if each != "deferred"] == ["received", "delay_told", "bounced", "bounce_told"]
    assert plant.store(lambda store: store.suppressions()) == []


def test_message_of_a_dead_destination_expires_though_it_is_never_tried(plant: Plant, upstream: Upstream) -> None:
    """What waits behind a pause has the same time to live, and its sender is told the same."""
    upstream.script({"banner": "close"})
    ids = [plant.send(f"r{number}@example.net") for number in range(12)]
    for each in ids:
        eventually(lambda each=each: plant.recipient(each).state.value == "bounced", "expired")  # type: ignore[misc]
    upstream.script()
    eventually(lambda: len({read(each)[1].queue_id for each in notices(upstream)}) == 12, "notices", 30)


def test_hard_bounce_suppresses_the_address(plant: Plant, upstream: Upstream) -> None:
    """The next message to it is taken, recorded as suppressed, and not sent; a policy refusal suppresses nobody."""
    plant.settled(plant.send("policy@example.net", reverse_path=""), "received", "bounced")
    plant.settled(plant.send("Unknown@Example.net", reverse_path=""), "received", "bounced")
    assert [each.address for each in plant.store(lambda store: store.suppressions())] == ["unknown@example.net"]
    upstream.script()
    message_id = plant.send("unknown@example.net", "ann@example.net")
    eventually(lambda: not plant.pending(), "all final")
    states = [each.state.value for each in plant.history(message_id).item.recipients]
    assert states == ["suppressed", "delivered"]
    assert [each.recipients for each in sent(upstream)] == [["RCPT TO:<ann@example.net>"]]
    figures = plant.store(lambda store: store.report())[0]
    assert (figures.sent, figures.delivered, figures.bounced, figures.suppressed) == (3, 1, 2, 1)
    assert plant.proxy.metric("cmail_proxy_suppressions_total") == 1
