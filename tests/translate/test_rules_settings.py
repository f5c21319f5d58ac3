"""The section ``rules`` of the settings, as an operator writes it: into the engine, and out to the platform."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import rulebook
from proxy.settings import load
from proxy.translate.engine import Engine
from proxy.translate.model import Action
from tests.smtp_in.dialogue import QUEUED
from tests.smtp_in.site import Site, site
from tests.translate.drive import CLICKS, CSS, GROUP, OPENS, run, values

DELAYED = "X-Mailgun-Deliver-By: Fri, 27 Nov 2026 09:00:00 +0000"
TEMPLATE = "X-MC-Template: t"
TEST_MODE = "X-Mailgun-Drop-Message: yes"
HIDDEN = "X-MC-PreserveRecipients: no"


def engine(folder: Path, **rules: Any) -> Engine:
    """The engine that the proxy makes of these settings."""
    file = folder / "settings.yaml"
    file.write_text(json.dumps({"relay": {"host": "smtp.example.com"}, "rules": rules}), encoding="utf-8")
    return rulebook.RuleBook(load(file, {})).engine


@pytest.mark.parametrize(
    ("rules", "actions"),
    [
        pytest.param({}, ("warn", "refuse", "discard", "refuse"), id="defaults"),
        pytest.param({"untranslatable": "act"}, ("warn", "refuse", "discard", "refuse"), id="act"),
        pytest.param({"untranslatable": "warn"}, ("warn", "warn", "discard", "warn"), id="softened"),
        pytest.param(
            {"untranslatable": "warn", "strip": "none"}, ("warn", "warn", "warn", "warn"), id="softened-and-kept"
        ),
        pytest.param(
            {"actions": {"time": "refuse", "text": "ignore"}}, ("refuse", "ignore", "discard", "refuse"), id="class"
        ),
        pytest.param(
            {"actions": {"time": "discard", "mailgun": {"time": "ignore", "test_mode": "refuse"}}},
            ("ignore", "refuse", "refuse", "refuse"),
            id="provider-over-class",
        ),
        pytest.param(
            {"actions": {"mandrill": {"privacy": "warn"}}}, ("warn", "refuse", "discard", "warn"), id="provider"
        ),
    ],
)
def test_actions_of_the_settings_decide_what_becomes_of_a_loss(
    tmp_path: Path, rules: dict[str, Any], actions: tuple[str, ...]
) -> None:
    """`rules.untranslatable` and `rules.actions`, by class and by class of one provider."""
    here = engine(tmp_path, **rules)
    found = tuple(run(here, field, to=2).action for field in (DELAYED, TEMPLATE, TEST_MODE, HIDDEN))
    assert found == tuple(map(Action, actions))


@pytest.mark.parametrize(
    ("strip", "left"),
    [(None, []), ("all", []), ("translated", ["X-PM-KeepID"]), ("none", ["X-PM-Tag", "X-PM-KeepID"])],
)
def test_strip_of_the_settings_decides_which_fields_leave(tmp_path: Path, strip: str | None, left: list[str]) -> None:
    """`rules.strip`: all by default."""
    found = run(engine(tmp_path, **({"strip": strip} if strip else {})), "X-PM-Tag: a", "X-PM-KeepID: true")
    assert [name for name in ("X-PM-Tag", "X-PM-KeepID") if name not in found.removed] == left


@pytest.mark.parametrize(
    ("when_absent", "expected"),
    [
        (None, {}),
        ("platform", {}),
        ("provider", {OPENS: "false", CLICKS: "false", CSS: "false"}),
        ({"mailgun": {OPENS: False, CSS: True}}, {OPENS: "false", CSS: "true"}),
        ({"postmark": {OPENS: False}}, {}),
    ],
)
def test_when_absent_of_the_settings_decides_what_is_written_for_silent_apps(
    tmp_path: Path, when_absent: Any, expected: dict[str, str]
) -> None:
    """`rules.when_absent`: a word, or a list for each provider; nothing by default."""
    here = engine(tmp_path, **({"when_absent": when_absent} if when_absent else {}))
    assert values(run(here, "X-Mailgun-Tag: a")) == {GROUP: "a", **expected}


def test_optional_rules_and_invalid_values_follow_the_settings(tmp_path: Path) -> None:
    """`rules.optional` switches rules on by name, `rules.on_invalid` refuses what cannot be read; no default does."""
    default = engine(tmp_path)
    assert values(run(default, "X-MJ-CustomID: a")) == {}
    assert run(default, "X-PM-TrackOpens: perhaps").action is Action.IGNORE
    other = engine(tmp_path, optional=["customid"], on_invalid="refuse")
    assert values(run(other, "X-MJ-CustomID: a")) == {GROUP: "a"}
    assert run(other, "X-PM-TrackOpens: perhaps").action is Action.REFUSE
    assert run(engine(tmp_path, on_invalid="pass"), "X-PM-TrackOpens: perhaps").action is Action.IGNORE


def test_rule_files_in_force_are_the_five_unless_others_are_named(tmp_path: Path) -> None:
    """`symfony` counts only where it is named, and naming some leaves the others out."""
    fields = ("X-Tag: a", "X-Mailgun-Tag: b")
    assert run(engine(tmp_path), *fields).removed == ("X-Mailgun-Tag",)
    assert run(engine(tmp_path, providers=["symfony"]), *fields).removed == ("X-Tag",)
    assert run(engine(tmp_path, providers=["symfony", "mailgun"]), *fields).removed == ("X-Tag", "X-Mailgun-Tag")


# On the wire


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy whose operator has decided about everything."""
    rules = {
        "actions": {"time": "refuse", "privacy": "warn", "mandrill": {"text": "discard"}},
        "strip": "translated",
        "when_absent": {"postmark": {OPENS: False, CSS: True}},
        "optional": ["message_stream"],
    }
    with site(tmp_path_factory.mktemp("rules"), rules=rules) as started:
        yield started


def send(here: Site, *fields: str) -> str:
    here.forget()
    with here.client() as client:
        return client.data("".join(f"{field}\r\n" for field in (*fields, "Subject: x")).encode() + b"\r\nbody\r\n.\r\n")


def test_message_meets_the_decisions_of_the_operator(here: Site) -> None:
    """Refused, passed and discarded as the settings say; the reply names field and reason."""
    assert send(here, DELAYED) == (
        "554 5.6.0 No counterpart here for X-Mailgun-Deliver-By (lost: sent at once); not sent"
    )
    assert send(here, TEMPLATE) == "250 2.0.0 Discarded and not sent: X-MC-Template (layout of the stored template)"
    assert here.upstream.taken == []
    assert send(here, "X-PM-Message-Stream: news", "X-PM-KeepID: true") == QUEUED
    assert here.header() == (
        b"X-Cmail-GroupName: news\r\nX-Cmail-TrackOpens: false\r\nX-Cmail-InlineCSS: true\r\n"
        b"X-PM-KeepID: true\r\nSubject: x\r\n"
    )


def test_name_that_is_cut_and_signature_that_breaks_are_counted(here: Site) -> None:
    """Both pass, stand in the log line, and are in a metric of their own."""
    counted = {
        kind: here.proxy.metric("cmail_proxy_remarks_total", kind=kind) for kind in ("name_cut", "signature_broken")
    }
    assert send(here, "DKIM-Signature: v=1; h=from:x-mailgun-tag; b=x", f"X-Mailgun-Tag: {'g' * 1000}") == QUEUED
    assert f"X-Cmail-GroupName: {'g' * 900}\r\n".encode() in here.header()
    remarks = [remark.partition(":")[0] for remark in here.lines()[0]["remarks"]]
    assert sorted(remarks) == ["name_cut", "signature_broken"]
    for kind, before in counted.items():
        assert here.proxy.metric("cmail_proxy_remarks_total", kind=kind) == before + 1
