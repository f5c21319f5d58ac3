"""/metrics after a known set of messages: every stage counted, each thing once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import __version__
from tests.operation.program import Samples, eventually, samples
from tests.operation.scenario import GUARDED, OPEN, Story, scenario
from tests.smtp_in.site import site

PREFIX = "cmail_proxy_"
TIMES = ("_seconds_sum", "_seconds_bucket", "_timestamp_seconds")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The scenario, played once."""
    with scenario(tmp_path_factory.mktemp("metrics")) as played:
        yield played


@pytest.fixture(scope="module")
def found(story: Story) -> Samples:
    """All samples after it."""
    return samples(story.here.proxy.get("/metrics")[1])


def having(found: Samples, name: str, label: str | None = None) -> dict[str, float]:
    """The samples of a name that are not 0, by a label's value."""
    return {
        dict(labels)[label] if label else "": value
        for (each, labels), value in found.items()
        if each == PREFIX + name and value
    }


def series(name: str, value: float, **labels: str) -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
    """Write down one sample."""
    return (PREFIX + name, frozenset(labels.items())), value


def expected(story: Story) -> Samples:
    """What the scenario must have counted."""
    listeners = [f"127.0.0.1:{port}" for port in story.here.ports]
    refused = {
        "untranslatable": 1,
        "invalid_value": 1,
        "size": 1,
        "header_section": 1,
        "hops": 1,
        "bare_newline": 1,
        "recipients": 1,
        "next_hop": 3,
    }
    translated = {
        ("mailgun", "X-Cmail-GroupName"): 1,
        ("mailgun", "X-Cmail-TrackClicks"): 1,
        ("sendgrid", "X-Cmail-GroupName"): 3,  # one of them refused for something else; the login's own counts first
        ("sendgrid", "X-Cmail-TrackOpens"): 1,
        ("postmark", "X-Cmail-GroupName"): 5,
        ("mandrill", "X-Cmail-GroupName"): 1,  # of the client that left
        ("mandrill", "X-Cmail-TrackOpens"): 0,
    }
    untranslatable = {
        ("mailgun", "X-Mailgun-Variables", "metadata", "ignore"): 1,
        ("mailgun", "X-Mailgun-Deliver-By", "time", "warn"): 1,
        ("mailgun", "X-Mailgun-Drop-Message", "test_mode", "discard"): 1,
        ("sendgrid", "X-SMTPAPI sub", "text", "refuse"): 1,
    }
    groups = {"orders": 5, "promo": 1, "postmark": 2, "sendgrid": 1, "lost": 1}
    untagged = 3  # plain, test mode, a value that does not parse; the others were refused before they were read
    return dict(
        [
            series("sessions_total", 15, listener=listeners[OPEN]),
            series("sessions_total", 5, listener=listeners[GUARDED]),
            series("messages_received_total", 14, listener=listeners[OPEN]),
            series("messages_received_total", 3, listener=listeners[GUARDED]),
            *(series("messages_refused_total", count, reason=reason) for reason, count in refused.items()),
            series("messages_discarded_total", 1, reason="test_mode"),
            series("messages_abandoned_total", 1, reason="client_gone"),
            series("commands_refused_total", 3, command="AUTH"),
            series("commands_refused_total", 1, command="other"),
            series("auth_attempts_total", 1, result="unsupported"),
            series("messages_discarded_total", 1, reason="login"),
            *(
                series("translated_total", count, provider=provider, target=target)
                for (provider, target), count in translated.items()
                if count
            ),
            *(
                series("untranslatable_total", count, provider=p, field=f, **{"class": c, "action": a})
                for (p, f, c, a), count in untranslatable.items()
            ),
            series("remarks_total", 2, kind="invalid_value", provider="mailgun"),  # for opens and for clicks
            series("remarks_total", 3, kind="two_providers", provider="none"),
            *(series("messages_by_group_total", count, group=group) for group, count in groups.items()),
            series("messages_by_group_total", untagged, group="ungrouped"),
            series("relayed_total", 5, outcome="accepted"),
            series("relayed_total", 1, outcome="permanent"),
            series("relayed_total", 1, outcome="transient"),
            series("relayed_total", 1, outcome="failed"),
            series("tls_handshakes_total", 4, version="TLSv1.3"),
            series("tls_handshake_failures_total", 1),
            series("auth_attempts_total", 3, result="accepted"),
            series("auth_attempts_total", 1, result="refused"),
            series("auth_attempts_total", 1, result="malformed"),
            series("auth_attempts_total", 1, result="cleartext_refused"),
            series("upstream_connect_failures_total", 1, stage="transaction"),
            series("message_bytes_total", sum(line["octets"] for line in story.here.proxy.events("message"))),
        ]
    )


def test_every_stage_is_counted_and_nothing_else(story: Story, found: Samples) -> None:
    """Each session, message, refusal, translation, loss and login is in its counter once; all others are 0."""
    counted = {key: value for key, value in found.items() if key[0].startswith(PREFIX) and key[0].endswith("_total")}
    assert {key: value for key, value in counted.items() if value} == expected(story)


def test_what_did_not_happen_yet_is_there_as_0(found: Samples) -> None:
    """Series whose labels are known exist from the start, so that rates and alerts see the first one."""
    for key in (
        series("internal_errors_total", 0, where="session"),
        series("sessions_refused_total", 0, reason="too_many_connections"),
        series("sessions_dropped_total", 0, reason="idle"),
        series("translated_total", 0, provider="mailjet", target="X-Cmail-GroupName"),
        series("messages_by_group_total", 0, group="other"),
    ):
        assert key[0] in found
        assert found[key[0]] == 0


def test_latencies_of_the_platform_are_in_histograms(story: Story, found: Samples) -> None:
    """Each reply of the platform that came is one observation, by command; each connection and each relay one more."""
    upstream = story.here.upstream
    commands = [command for dialogue in upstream.dialogues for command in dialogue.commands]
    asked = {
        "mail_rcpt": sum(command.startswith("RCPT") for command in commands),
        "data": commands.count("DATA"),
        "dot": len(upstream.taken) - 1,  # one was answered by hanging up
    }
    assert having(found, "upstream_reply_seconds_count", "command") == asked
    assert having(found, "upstream_connect_seconds_count") == {"": len(upstream.dialogues)}
    assert having(found, "relay_seconds_count") == {"": 8}
    for name in ("upstream_reply_seconds", "upstream_connect_seconds", "relay_seconds"):
        last = [
            (labels, value)
            for (each, labels), value in found.items()
            if each == f"{PREFIX}{name}_bucket" and ("le", "+Inf") in labels
        ]
        assert last
        for labels, value in last:
            assert found[f"{PREFIX}{name}_count", labels - {("le", "+Inf")}] == value


def test_states_are_those_of_the_moment(story: Story, found: Samples) -> None:
    """Pool, sessions, rules, certificate and build are told as they are."""
    assert having(found, "sessions_open", "listener") == {}
    assert having(found, "upstream_connections", "state") == {"idle": len(story.here.upstream.open)} == {"idle": 1}
    assert having(found, "upstream_reachable") == {"": 1}
    assert having(found, "rules_last_reload_success") == {"": 1}
    assert having(found, "rules")[""] > 50
    assert having(found, "certificate_last_reload_success") == {"": 1}
    assert having(found, "certificate_not_after_timestamp_seconds")[""] > 1_790_000_000
    assert having(found, "build_info", "version") == {__version__: 1}


def test_labels_hold_nothing_that_comes_from_a_message_but_groups(found: Samples) -> None:
    """No address, token, client or reply becomes a label: the values are few, and known beforehand."""
    names = {name for sample, labels in found if sample.startswith(PREFIX) for name, _ in labels}
    closed = {"listener", "reason", "provider", "target", "field", "class", "action", "kind", "outcome", "version"}
    assert names == closed | {"result", "stage", "group", "where", "python", "command", "state", "le"}
    text = " ".join(value for _, labels in found for _, value in labels)
    assert "@" not in text
    assert "example" not in text


def test_groups_beyond_the_limit_are_counted_together(tmp_path: Path) -> None:
    """Two hundred names become labels; whoever invents more is counted under other, and no message is lost to it."""
    with site(tmp_path) as here, here.client() as client:
        for number in range(205):
            client.envelope()
            client.send(f"X-PM-Tag: group {number}\r\n\r\n.\r\n".encode())
            assert client.reply() == "250 2.0.0 queued as PLATFORM1"
        client.data(b"X-PM-Tag: group 7\r\n\r\n.\r\n")
        eventually(lambda: here.proxy.metric("cmail_proxy_messages_received_total") == 206)
        groups = having(samples(here.proxy.get("/metrics")[1]), "messages_by_group_total", "group")
        assert groups.pop("other") == 5
        assert groups.pop("group 7") == 2
        assert groups == {f"group {number}": 1 for number in range(200) if number != 7}
