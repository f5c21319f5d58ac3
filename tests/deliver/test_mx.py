"""``via: mx``, the whole program on a small Internet of its own: a name server, and the hosts of some domains."""

import email
import email.policy
from pathlib import Path

from proxy.mail import dsn
from tests.deliver.plant import IMPATIENT, Plant, eventually
from tests.support.nameserver import NameServer
from tests.support.upstream import Upstream

ZONE = (
    "one.example 300 MX 10 mx.one.example.",
    "two.example 300 MX 10 mx.two.example.",
    "none.example 300 MX 0 .",
    "private.example 300 MX 10 mx.private.example.",
    "mx.one.example 300 A 127.0.0.2",
    "mx.two.example 300 A 127.0.0.3",
    "mx.private.example 300 A 10.1.2.3",
    "loop.example 300 MX 10 proxy.example.com.",
    "proxy.example.com 300 A 127.0.0.2",
    "example.com 300 MX 10 mx.one.example.",
)


def on_ports(smtp: int, dns: int) -> str:
    """Code to run first: hosts and name servers are at these ports, since nobody may listen on 25 and 53 here."""
    return (
        f"{IMPATIENT}\ncourier.MxSettings = functools.partial(courier.MxSettings, port={smtp})\n"
        f"courier.ResolverSettings = functools.partial(courier.ResolverSettings, port={dns})\n"
    )


def test_each_domain_gets_its_mail_from_its_own_hosts(tmp_path: Path) -> None:
    """Recipients of a domain in one transaction; who cannot be reached bounces, and a null MX is suppressed."""
    with (
        Upstream(address="127.0.0.2") as one,
        Upstream(address="127.0.0.3", port=one.port) as two,
        NameServer(ZONE) as names,
    ):
        deliver = {"via": "mx", "nameservers": ["127.0.0.1"], "allow_networks": ["127.0.0.0/8"]}
        with Plant(tmp_path, deliver, first=on_ports(one.port, names.port)) as plant:
            recipients = ("a@one.example", "b@ONE.example", "c@two.example", "d@none.example", "e@private.example")
            message_id = plant.send(*recipients)
            eventually(lambda: not plant.pending(), "all final")
            states = [each.state.value for each in plant.history(message_id).item.recipients]
            assert states == ["delivered", "delivered", "delivered", "bounced", "bounced"]
            sent = [each for each in one.taken if not each.mail.startswith("MAIL FROM:<>")]
            assert [each.recipients for each in sent] == [["RCPT TO:<a@one.example>", "RCPT TO:<b@ONE.example>"]]
            assert [each.recipients for each in two.taken] == [["RCPT TO:<c@two.example>"]]
            told = [each for each in one.taken if each.mail.startswith("MAIL FROM:<>")]
            reports = [report for each in told if (report := dsn.parse(each.content)) is not None]
            failed = [recipient for report in reports for recipient in report.recipients]
            assert {(each.address, each.status) for each in failed} == {
                ("d@none.example", "5.1.10"),
                ("e@private.example", "5.4.4"),
            }
            for each in told:
                parsed = email.message_from_bytes(each.content, policy=email.policy.default)
                assert parsed.get_content_type() == "multipart/report"
            assert [each.address for each in plant.store(lambda store: store.suppressions())] == ["d@none.example"]
            assert plant.proxy.metric("cmail_proxy_attempts_total", destination="one.example") >= 2
            assert plant.proxy.stop() == 0


def test_connection_to_a_host_is_used_for_the_next_message(tmp_path: Path) -> None:
    """One after the other, to one domain: one connection."""
    with Upstream(address="127.0.0.2") as one, NameServer(ZONE) as names:
        deliver = {"via": "mx", "nameservers": ["127.0.0.1"], "allow_networks": ["127.0.0.0/8"]}
        with Plant(tmp_path, deliver, first=on_ports(one.port, names.port)) as plant:
            for number in range(3):
                plant.settled(plant.send(f"r{number}@one.example", reverse_path=""), "received", "delivered")
            assert len(one.dialogues) == 1
            assert len(one.taken) == 3


def test_settings_of_hosts_count(tmp_path: Path) -> None:
    """TLS that is required and not offered defers; a domain whose host we are is a loop; others are not meant."""
    with Upstream(address="127.0.0.2") as one, NameServer(ZONE) as names:
        deliver = {
            "via": "mx",
            "nameservers": ["127.0.0.1"],
            "allow_networks": ["127.0.0.0/8"],
            "require_tls": ["One.example"],
            "retry": {"first_seconds": 3600},
        }
        with Plant(tmp_path, deliver, first=on_ports(one.port, names.port)) as plant:
            secret = plant.send("a@one.example", reverse_path="")
            plant.settled(secret, "received", "deferred")
            assert "offers no STARTTLS" in plant.recipient(secret).reply
            loop = plant.send("b@loop.example", reverse_path="")
            plant.settled(loop, "received", "bounced")
            assert "would come back to this host" in plant.recipient(loop).reply
            plant.settled(plant.send("c@example.com", reverse_path=""), "received", "delivered")
            assert [each.recipients for each in one.taken] == [["RCPT TO:<c@example.com>"]]
            assert plant.store(lambda store: store.suppressions()) == []
