"""What the operator sees of the relay: the log line of each message, and metrics that match what happened."""

from pathlib import Path
from typing import Any

import pytest

from tests.relay.site import ANN, BOB, LOST, MAIL, MAIL_OK, NO_CONNECTION, RCPT_OK, Relay, relay
from tests.smtp_in.dialogue import QUEUED, START_MAIL
from tests.smtp_in.site import MESSAGE
from tests.support.proxy_process import ProxyProcess
from tests.support.upstream import CLOSE, EXTENSIONS, Upstream

PREFIX = "cmail_proxy_"


def values(proxy: ProxyProcess, name: str, label: str) -> dict[str, float]:
    """All series of a counter that are not 0, by the value of a label."""
    found: dict[str, float] = {}
    for line in proxy.get("/metrics")[1].splitlines():
        series, _, value = line.rpartition(" ")
        if series.startswith(f"{PREFIX}{name}{{") and float(value):
            found[series.partition(f'{label}="')[2].partition('"')[0]] = float(value)
    return found


def count(proxy: ProxyProcess, command: str) -> float:
    """How many replies to this command were timed."""
    return proxy.metric(f"{PREFIX}upstream_reply_seconds_count", command=command)


def test_messages_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    """relayed_total has one count for each message handed on, under what became of it, and no other."""
    with relay(tmp_path) as here:
        here.warm_up()
        outcomes = ("accepted", "transient", "permanent", "failed")
        text = here.proxy.get("/metrics")[1]
        for outcome in outcomes:  # there from the start, at 0
            assert f'{PREFIX}relayed_total{{outcome="{outcome}"}} 0' in text
        expected: dict[str, float] = {}
        for dot, outcome in [
            (QUEUED, "accepted"),
            ("452 4.3.1 full", "transient"),
            ("554 5.6.0 no", "permanent"),
            (CLOSE, "failed"),
            ("421 4.3.2 closing", "failed"),
            ("354 more", "failed"),
            (QUEUED, "accepted"),
        ]:
            before = here.logged()
            here.upstream.script({"dot": dot})
            with here.client() as client:
                client.data(MESSAGE)
            expected[outcome] = expected.get(outcome, 0) + 1
            assert here.last_line(before)["outcome"] == outcome
            assert values(here.proxy, "relayed_total", "outcome") == expected
        assert values(here.proxy, "messages_refused_total", "reason") == {"next_hop": 5}
        assert here.proxy.metric(f"{PREFIX}messages_received_total") == 7
        assert here.proxy.metric(f"{PREFIX}relay_seconds_count") == 7
        assert (count(here.proxy, "mail_rcpt"), count(here.proxy, "data"), count(here.proxy, "dot")) == (7, 7, 6)


def test_messages_that_are_not_handed_on_are_not_counted_as_relayed(tmp_path: Path) -> None:
    """Refused, discarded, broken off, and never begun: each has its own counter, or none."""
    with relay(tmp_path) as here:
        here.warm_up()
        with here.client() as client:
            assert client.data(b"X-MC-Template: t\r\n\r\n.\r\n").startswith("554 5.6.0 ")
            assert client.data(b"X-Mailgun-Drop-Message: yes\r\n\r\n.\r\n").startswith("250 2.0.0 Discarded ")
            client.envelope()
            client.send(b"Subject: half\r\n\r\n")
        here.proxy.event("message", 3)
        here.upstream.script({"RCPT": "550 5.1.1 unknown"})
        with here.client() as client:
            assert [client.say(MAIL), client.say(ANN)] == [MAIL_OK, "550 5.1.1 unknown"]
        here.upstream.script()
        assert values(here.proxy, "relayed_total", "outcome") == {}
        assert values(here.proxy, "messages_refused_total", "reason") == {"untranslatable": 1}
        assert values(here.proxy, "messages_discarded_total", "reason") == {"test_mode": 1}
        assert here.proxy.metric(f"{PREFIX}messages_received_total") == 3


@pytest.mark.parametrize(
    ("script", "stage", "reason"),
    [
        pytest.param({"banner": "554 5.3.2 no"}, "banner", "the next hop said 554 5.3.2 no", id="banner"),
        pytest.param({"EHLO": "550 5.7.1 no"}, "ehlo", "the next hop said 550 5.7.1 no", id="ehlo"),
        pytest.param({"AUTH": "535 5.7.8 no"}, "auth", "the next hop said 535 5.7.8 no", id="auth"),
        pytest.param({"DATA": CLOSE}, "transaction", "closed by the next hop", id="transaction"),
    ],
)
def test_connections_that_fail_are_counted_by_stage(
    tmp_path: Path, script: dict[str, Any], stage: str, reason: str
) -> None:
    """
    upstream_connect_failures_total and the log say where and why.

    upstream_reachable is about attempts to connect, so a connection lost in a transaction leaves it alone.
    """
    upstream = Upstream(extensions=(*EXTENSIONS, "AUTH PLAIN"))
    with relay(tmp_path, upstream, relay={"username": "u", "password": "p"}) as here:
        here.extensions = upstream.extensions
        here.warm_up()
        assert values(here.proxy, "upstream_connect_failures_total", "stage") == {}
        assert here.proxy.metric(f"{PREFIX}upstream_reachable") == 1
        here.unpool()
        here.upstream.script(script, extensions=here.extensions)
        assert here.attempt()[-1].startswith("451 4.")
        assert values(here.proxy, "upstream_connect_failures_total", "stage") == {stage: 1}
        line = here.proxy.event("upstream_failed")
        assert (line["level"], line["stage"], line["reason"]) == ("error", stage, reason)
        assert here.proxy.metric(f"{PREFIX}upstream_reachable") == (stage == "transaction")
        here.serves_again()
        assert here.proxy.metric(f"{PREFIX}upstream_reachable") == 1
        assert values(here.proxy, "upstream_connect_failures_total", "stage") == {stage: 1}


def test_platform_out_of_reach_is_seen_as_such(tmp_path: Path) -> None:
    """Nobody listens: stage connect, upstream_reachable 0, and a line for each app that was turned away."""
    upstream = Upstream()
    with relay(tmp_path, upstream) as here:
        here.warm_up()
        upstream.stop()
        assert here.attempt() == [NO_CONNECTION]
        assert values(here.proxy, "upstream_connect_failures_total", "stage") == {"connect": 1}
        assert here.proxy.metric(f"{PREFIX}upstream_reachable") == 0
        line = here.proxy.event("no_connection")
        assert (line["level"], line["reply"]) == ("warning", NO_CONNECTION)
        assert here.proxy.get("/livez")[0] == 200
        assert here.proxy.get("/readyz")[0] == 200


def test_pool_is_seen_as_it_is(here: Relay) -> None:
    """Connections in use and at rest."""
    busy, idle = ({"name": f"{PREFIX}upstream_connections", "state": state} for state in ("busy", "idle"))
    assert (here.proxy.metric(**busy), here.proxy.metric(**idle)) == (0, 1)
    with here.client() as one, here.client() as two:
        assert [one.say(MAIL), two.say(MAIL)] == [MAIL_OK, MAIL_OK]
        assert (here.proxy.metric(**busy), here.proxy.metric(**idle)) == (2, 0)
    here.rest()
    assert here.proxy.metric(**idle) == 2


def test_log_line_of_a_message_tells_its_story(here: Relay) -> None:
    """One line: ids, provider, group, what was set by which rule, what was lost, the platform's reply, durations."""
    before = here.logged()
    content = (
        b"From: App <app@example.com>\r\n"
        b"X-Mailgun-Tag: spring sale\r\n"
        b"X-Mailgun-Track-Opens: no\r\n"
        b'X-Mailgun-Variables: {"customer": "secret-value-4711"}\r\n'
        b"Subject: the-subject\r\n\r\nthe-body\r\n"
    )
    with here.client() as client:
        assert [client.say(MAIL), client.say(ANN), client.say(BOB), client.say("DATA")][-1] == START_MAIL
        client.send(content + b".\r\n")
        assert client.reply() == QUEUED
    line = here.last_line(before)
    identity, session = line.pop("id"), line.pop("session")
    assert identity.endswith(session[:8])
    received = here.upstream.taken[0].content.partition(b";")[0]
    assert received.endswith(f" id {identity}".encode())
    seconds = line.pop("seconds")
    assert sorted(seconds) == ["envelope", "receive", "send"]
    assert all(0 <= value < 20 for value in seconds.values())
    rules = {each["field"]: each.pop("rule") for each in line["set"]}
    for field, rule in rules.items():
        file, _, number = rule.rpartition(":")
        source = Path(__file__).parents[2] / "mappings" / Path(file).name
        assert field in source.read_text("utf-8").splitlines()[int(number) - 1]
    assert line.pop("ts")
    assert line == {
        "level": "info",
        "event": "message",
        "listener": f"127.0.0.1:{here.port}",
        "client": "127.0.0.1",
        "login": None,
        "reverse_path": "app@example.com",
        "recipients": ["ann@example.net", "bob@example.net"],
        "octets": len(content),
        "providers": ["mailgun"],
        "group": "spring sale",
        "set": [
            {"field": "X-Cmail-GroupName", "value": "spring sale", "source": "X-Mailgun-Tag"},
            {"field": "X-Cmail-TrackOpens", "value": "false", "source": "X-Mailgun-Track-Opens"},
        ],
        "removed": ["X-Mailgun-Tag", "X-Mailgun-Track-Opens", "X-Mailgun-Variables"],
        "lost": [{"source": "X-Mailgun-Variables", "class": "metadata", "action": "ignore", "loses": "webhook data"}],
        "remarks": [],
        "line_ends_mended": False,
        "outcome": "accepted",
        "reply": QUEUED,
        "upstream": QUEUED,
    }
    text = here.proxy.log_file.read_text("utf-8")
    for hidden in ("secret-value-4711", "the-subject", "the-body"):
        assert hidden not in text


@pytest.mark.parametrize(
    ("dot", "outcome", "reply", "upstream"),
    [
        pytest.param("452 4.3.1 full", "transient", "452 4.3.1 full", "452 4.3.1 full", id="transient"),
        pytest.param("554 no", "permanent", "554 5.0.0 no", "554 no", id="permanent"),
        pytest.param("554-a\n554 b", "permanent", "554 5.0.0 a / b", "554 a / b", id="two-lines"),
        pytest.param("421 bye", "failed", "451 4.4.2 bye", "421 bye", id="421"),
        pytest.param(CLOSE, "failed", LOST, "closed by the next hop", id="closed"),
    ],
)
def test_log_line_tells_what_the_platform_said_and_what_the_app_heard(
    here: Relay, dot: str, outcome: str, reply: str, upstream: str
) -> None:
    """The two differ where we translate a failure, so both are there."""
    before = here.logged()
    here.upstream.script({"dot": dot})
    with here.client() as client:
        client.data(MESSAGE)
    line = here.last_line(before)
    assert (line["outcome"], line["reply"], line["upstream"]) == (outcome, reply, upstream)
    here.serves_again()


def test_refused_recipient_is_logged(here: Relay) -> None:
    """The app may say nothing to anybody, so the operator can see it here."""
    before = len(here.proxy.events("recipient_refused"))
    here.upstream.script({"RCPT": lambda line: "550 5.1.1 unknown" if line == BOB else RCPT_OK})
    assert here.attempt() == [MAIL_OK, RCPT_OK, "550 5.1.1 unknown", START_MAIL, QUEUED]
    line = here.proxy.event("recipient_refused", before + 1)
    assert (line["recipient"], line["reply"]) == ("bob@example.net", "550 5.1.1 unknown")
    here.serves_again()
