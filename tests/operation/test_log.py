"""The log of the running proxy: one line for each message, and never what must not be in it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.operation.program import eventually, free_port, rule_at
from tests.operation.scenario import (
    BODY,
    PASSWORD,
    RELAY_PASSWORD,
    RELAY_USER,
    SANDBOX,
    TOKEN,
    WRONG,
    Story,
    scenario,
)
from tests.smtp_in.dialogue import base64_of, plain
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.proxy_process import ProxyProcess
from tests.support.upstream import CLOSE, EXTENSIONS, Upstream

FIELDS = {
    "ts",
    "level",
    "event",
    "id",
    "session",
    "listener",
    "client",
    "login",
    "reverse_path",
    "recipients",
    "octets",
    "providers",
    "group",
    "set",
    "removed",
    "lost",
    "remarks",
    "line_ends_mended",
    "outcome",
    "reply",
    "upstream",
    "seconds",
}
TIME = r"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\.[0-9]{3}Z"
SECRETS = [
    secret
    for word in (TOKEN, PASSWORD, SANDBOX, WRONG, RELAY_PASSWORD)
    for secret in (word, base64_of(word), base64_of(f"\0{word}\0{word}"), base64_of(f"\0apikey\0{word}"))
] + [plain(RELAY_USER, RELAY_PASSWORD)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The scenario, played once, with all that can be logged."""
    with scenario(tmp_path_factory.mktemp("log"), "debug") as played:
        yield played


def raw(here: Site) -> str:
    """The log as it is on disk."""
    return here.proxy.log_file.read_text("utf-8", "strict")


def test_every_line_is_an_object_with_time_level_and_event(story: Story) -> None:
    """Whatever is logged, a program can read it."""
    lines = [line for line in raw(story.here).splitlines() if not line.startswith("warning: ")]
    for line in lines:
        record = json.loads(line)
        assert re.fullmatch(TIME, record["ts"])
        assert record["level"] in ("debug", "info", "warning", "error")
        assert re.fullmatch(r"[a-z_]+", record["event"])
    assert lines


def test_each_message_has_exactly_one_line(story: Story) -> None:
    """Accepted, refused by whomever, discarded or left in the middle: a line for each, in order, with its reply."""
    messages = story.here.proxy.events("message")
    assert {frozenset(each) for each in messages} == {frozenset(FIELDS)}
    should_be = {"accepted", "discarded"}
    assert all(each["level"] == ("info" if each["outcome"] in should_be else "warning") for each in messages)
    assert [each["reply"] for each in messages if each["outcome"] != "client_gone"] == story.replies
    assert [each["outcome"] for each in messages] == [
        *["accepted"] * 3,
        "discarded",
        *["refused"] * 6,
        *["permanent", "transient", "failed"],
        "client_gone",
        *["accepted"] * 2,
        "discarded",
    ]
    (gone,) = [each for each in messages if each["outcome"] == "client_gone"]
    assert (gone["reply"], gone["upstream"]) == (None, None)
    ids = [each["id"] for each in messages]  # each line is written when its message ends, and here none overlap
    assert ids == sorted(set(ids))
    assert [each["octets"] for each in messages if each["outcome"] == "accepted"] == [
        octets
        for octets, reply in zip(story.octets, story.replies, strict=True)
        if reply.startswith("250 2.0.0 queued")
    ]


def test_line_of_a_message_tells_its_whole_way(story: Story) -> None:
    """Who sent it to whom, which rule set what, what was lost, what the platform said, and how long it all took."""
    line = story.here.proxy.events("message")[1]
    session = line.pop("session")
    assert re.fullmatch(r"[a-z2-7]{8}[0-9a-f]+", session)
    assert re.fullmatch(r"[0-9a-f]{11}" + session[:8], line.pop("id"))
    assert line.pop("octets") == story.octets[1]
    seconds = line.pop("seconds")
    assert set(seconds) == {"envelope", "receive", "send"}
    assert all(isinstance(each, float) and each >= 0 for each in seconds.values())
    assert seconds["send"] > 0
    for name in ("ts", "level", "event"):
        del line[name]
    rules = [each.pop("rule") for each in line["set"]]
    assert line == {
        "listener": f"127.0.0.1:{story.here.port}",
        "client": "127.0.0.1",
        "login": None,
        "reverse_path": "app@example.com",
        "recipients": ["ann@example.net"],
        "providers": ["mailgun"],
        "group": "orders",
        "set": [
            {"field": "X-Cmail-GroupName", "value": "orders", "source": "X-Mailgun-Tag"},
            {"field": "X-Cmail-TrackClicks", "value": "false", "source": "X-Mailgun-Track-Clicks"},
        ],
        "removed": [
            "X-Mailgun-Tag",
            "X-Mailgun-Tag",
            "X-Mailgun-Track-Clicks",
            "X-Mailgun-Variables",
            "X-Mailgun-Deliver-By",
        ],
        "lost": [
            {"source": "X-Mailgun-Deliver-By", "class": "time", "action": "warn", "loses": "sent at once"},
            {"source": "X-Mailgun-Variables", "class": "metadata", "action": "ignore", "loses": "webhook data"},
        ],
        "remarks": [],
        "line_ends_mended": False,
        "outcome": "accepted",
        "reply": "250 2.0.0 queued as PLATFORM1",
        "upstream": "250 2.0.0 queued as PLATFORM1",
    }
    for rule, (field, target) in zip(
        rules, [("X-Mailgun-Tag", "GroupName"), ("X-Mailgun-Track-Clicks", "TrackClicks")], strict=True
    ):
        assert re.search(rf"field: {field}\b.*to: X-Cmail-{target}\b", rule_at(rule))


def test_line_names_the_login_and_its_provider_counts_first(story: Story) -> None:
    """Fields of several providers are remarked on; those of the login's provider, else of the listener's, count."""
    messages = story.here.proxy.events("message")[-3:]
    assert [(each["login"], each["group"]) for each in messages] == [
        ("billing", "postmark"),
        ("legacy", "sendgrid"),
        ("sandbox", "postmark"),
    ]
    for each in messages:
        assert each["providers"] == ["mailgun", "postmark", "sendgrid"]
        assert [remark.partition(":")[0] for remark in each["remarks"]] == ["two_providers"]


def test_what_led_to_no_message_is_told_too(story: Story) -> None:
    """Refused logins, failed handshakes and too many recipients have lines of their own, with the client's address."""
    events = story.here.proxy.events
    (refused,) = events("auth_refused")
    assert (refused["level"], refused["client"]) == ("warning", "127.0.0.1")
    (failed,) = events("tls_failed")
    assert failed["client"] == "127.0.0.1"
    (many,) = events("too_many_recipients")
    assert (many["recipients"], many["limit"]) == (4, 3)
    assert [each["stage"] for each in events("upstream_failed")] == ["transaction"]
    assert events("internal_error") == []
    for event in (refused, many):
        assert set(event) >= {"session", "client", "listener", "login"}
    assert refused["username_of"] == ["legacy"]
    assert many["reverse_path"] == "app@example.com"
    assert set(failed) >= {"session", "client", "listener", "reason"}
    assert [(each["command"], each["reply"][:3]) for each in events("command_refused")] == [
        ("AUTH", "538"),
        ("AUTH", "501"),
        ("AUTH", "504"),
        ("other", "500"),
    ]


def test_no_secret_and_no_body_is_ever_logged(story: Story) -> None:
    """Tokens and passwords, plain or as AUTH writes them, right or wrong, and the text of messages stay out."""
    text = raw(story.here)
    assert [secret for secret in SECRETS if secret in text] == []
    assert BODY not in text
    assert "Ann" not in text  # a value of the refused X-SMTPAPI field
    metrics = story.here.proxy.get("/metrics")[1]
    assert [secret for secret in SECRETS if secret in metrics] == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_platform_that_repeats_our_password_does_not_bring_it_into_the_log(tmp_path: Path, mechanism: str) -> None:
    """A reply that quotes what it refuses is logged without the secret in it, and reaches the app as 451."""
    heard = [RELAY_PASSWORD, base64_of(RELAY_PASSWORD), plain(RELAY_USER, RELAY_PASSWORD)]
    upstream = Upstream(
        {"AUTH": f"535 5.7.8 not taken: {' '.join(heard)}"}, extensions=(*EXTENSIONS, f"AUTH {mechanism}")
    )
    relay = {"username": RELAY_USER, "password": RELAY_PASSWORD}
    with site(tmp_path, upstream, relay=relay, log={"level": "debug"}) as here, here.client() as client:
        assert here.proxy.event("upstream_failed")["stage"] == "auth"
        reply = client.say("MAIL FROM:<app@example.com>")
        assert reply == "451 4.3.5 The next hop does not take our credentials, try again later"
        assert [secret for secret in heard if secret in raw(here)] == []


def test_controls_in_values_cannot_forge_a_line(tmp_path: Path) -> None:
    """Line ends of any kind in names, addresses, fields and replies are escaped: each line stays one line."""
    forged = '{"event":"forged"}'
    words = b"=?utf-8?q?a=0D=0A=7B=22event=22:=22forged=22=7D=E2=80=A8=C2=85=1B[2Jb?="
    upstream = Upstream({"dot": f"550 5.7.1 no\x0b{forged}\x1b[2J"})
    with site(tmp_path, upstream, log={"level": "debug"}) as here, here.client() as client:
        client.send(b"EHLO x\x1b[2J\r\nMAIL FROM:<a\x0b@example.com>\r\nRCPT TO:<b\n" + forged.encode() + b"@x>\r\n")
        client.replies(4)
        client.envelope()
        client.send(b"X-PM-Tag: " + words + b"\r\nX-PM-Metadata-\x1b[2J: x\r\n\r\nbody\r\n.\r\n")
        assert client.reply().startswith("550 5.7.1 ")
        group = here.proxy.event("message")["group"]
        assert group.startswith("a")
        lines = here.proxy.log_file.read_bytes().split(b"\n")
        assert lines.pop() == b""
        for line in lines:
            if not line.startswith(b"warning: "):
                assert json.loads(line)["event"] != "forged"
            assert all(0x20 <= octet < 0x7F for octet in line)


class Text(ProxyProcess):
    """A proxy that logs for people."""

    pattern = re.compile(rf"({TIME}) ([A-Z]+) ([a-z_]+)((?: [a-z_]+=.*)?)")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Read the lines back; values that are no plain word are JSON."""
        found = []
        for line in self.log_file.read_text("utf-8").splitlines():
            match = self.pattern.fullmatch(line)
            if match is None:
                continue
            fields: dict[str, Any] = {"ts": match[1], "level": match[2], "event": match[3]}
            rest = match[4].strip()
            while rest:
                key, _, rest = rest.partition("=")
                if rest[:1] in ('"', "[", "{"):
                    fields[key], end = json.JSONDecoder().raw_decode(rest)
                    rest = rest[end:]
                else:
                    fields[key], _, rest = rest.partition(" ")
                rest = rest.lstrip(" ")
            if name is None or fields["event"] == name:
                found.append(fields)
        return found


def test_text_format_is_for_people_and_as_safe(tmp_path: Path) -> None:
    """format: text writes the same facts in words, one line for each event, controls escaped."""
    values = {
        "hostname": "proxy.example.com",
        "listeners": [{"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "none"}],
        "log": {"format": "text"},
        "rules": {"when_absent": "provider"},
        "http": {"probes": {"port": 0}},
    }
    with Upstream() as upstream:
        relay = {"host": "127.0.0.1", "port": upstream.port, "tls": "none"}
        with Text(tmp_path, {**values, "relay": relay}) as proxy:
            here = Site(proxy, upstream)
            with here.client() as client:
                client.data(b"X-MC-Tags: =?utf-8?q?caf=C3=A9_=22=0A=1B[2J=E2=80=A8?=\r\n\r\nbody\r\n.\r\n")
            line = proxy.event("message")
            assert (line["level"], line["outcome"], line["reverse_path"]) == ("INFO", "accepted", "app@example.com")
            assert line["group"].startswith("café")
            assert line["set"][0]["field"] == "X-Cmail-GroupName"
            assert line["recipients"] == ["ann@example.net"]
            assert proxy.stop() == 0
            text = proxy.log_file.read_text("utf-8")
            assert all(Text.pattern.fullmatch(each) for each in text.removesuffix("\n").split("\n"))
            assert text.replace("\n", "").isprintable()


class Quiet(ProxyProcess):
    """A proxy whose log may not say where it listens; the settings do."""

    def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait until the probes answer, instead of for the line that says where."""
        if name != "listening":
            return super().event(name, count)
        values = json.loads(self.config.read_text())
        self.probes_port = values["http"]["probes"]["port"]
        eventually(self._answers, "the probes answer")
        return {"listeners": values["listeners"], "probes": values["http"]["probes"]}

    def _answers(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", {"listening", "upstream_connected", "message", "auth_refused", "upstream_failed"}),
        ("warning", {"message", "auth_refused", "upstream_failed"}),
        ("error", {"upstream_failed"}),
    ],
)
def test_level_is_the_least_that_is_written(tmp_path: Path, level: str, events: set[str]) -> None:
    """Lines below log.level are left out, those from it on are there."""
    with Upstream({"dot": CLOSE}) as upstream:
        config = {
            "hostname": "proxy.example.com",
            "log": {"level": level},
            "listeners": [{"address": "127.0.0.1", "port": free_port(), "tls": "none", "auth": "optional"}],
            "tokens": [{"name": "billing", "token": TOKEN}],
            "relay": {"host": "127.0.0.1", "port": upstream.port, "tls": "none"},
            "http": {"probes": {"port": free_port()}},
            "rules": {"when_absent": "provider"},
        }
        with Quiet(tmp_path, config) as proxy:
            here = Site(proxy, upstream)
            with here.client() as client:
                client.say(f"AUTH PLAIN {plain('nobody', WRONG)}")
                assert client.data(MESSAGE).startswith("451 ")
            assert proxy.stop() == 0
            seen = {each["event"] for each in proxy.events()}
            assert events <= seen
            if level != "debug":
                assert seen == events
