"""What a person is told about the translation of a message."""

import pytest

from proxy.translate.explain import explain
from tests.translate.drive import PROVIDER_DEFAULTS, engine, own, run

RULES = """\
title: Acme
fields: [X-A-*]
json: {X-A-Json: {}}
translate:
  - {field: X-A-Tag, to: X-Cmail-GroupName}
  - {field: X-A-Opens, to: X-Cmail-TrackOpens, as: switch}
when_absent: {X-Cmail-InlineCSS: false}
untranslatable:
  - {field: X-A-Meta, class: metadata, loses: webhook data}
  - {field: X-A-At, class: time, loses: sent at once}
  - {field: X-A-Text, class: text, loses: the text}
  - {field: X-A-Test, class: test_mode, loses: test mode}
  - {field: X-A-Json, at: a, class: text, loses: the text}
"""


def lines(*fields: str) -> list[str]:
    return explain(run(own(RULES, **PROVIDER_DEFAULTS), *fields)).split("\n")


def test_explanation_of_a_message_without_controls_says_that_it_passes() -> None:
    """Nothing found is told as that."""
    assert lines("Subject: s") == [
        "providers  none found",
        "group      none (Ungrouped emails)",
        "decision   passed on",
        "",
    ]


def test_explanation_names_the_rule_of_each_field_set_removed_and_lost() -> None:
    """File and line for every fact, in the order of their weight for the reader."""
    assert lines(
        "x-a-tag: caf\u00e9", "X-A-Opens: perhaps", "X-A-Meta: m", "X-A-At: t", "X-A-Json: 1", "X-A-New: n"
    ) == [
        "providers  acme",
        "set        X-Cmail-GroupName: caf\u00e9",
        "           from X-A-Tag, acme.yaml:5",
        "set        X-Cmail-InlineCSS: false",
        "           because the app says nothing: when_absent for acme",
        "removed    x-a-tag",
        "removed    X-A-Opens",
        "removed    X-A-Meta",
        "removed    X-A-At",
        "removed    X-A-Json",
        "removed    X-A-New",
        "lost       X-A-Meta: webhook data (class metadata: counted)",
        "           acme.yaml:9",
        "lost       X-A-At: sent at once (class time: warned of)",
        "           acme.yaml:10",
        "remark     invalid_value: X-A-Opens: X-Cmail-TrackOpens not set: an unknown word",
        "           acme.yaml:6",
        "remark     invalid_value: X-A-Json: JSON, but not an object; nothing in it is used",
        "remark     unknown_field: X-A-*: no rule knows X-A-New; it was removed",
        "group      caf\u00e9",
        "decision   passed on",
        "",
    ]


@pytest.mark.parametrize(
    ("field", "effect", "decision"),
    [
        (
            "X-A-Text: v",
            "X-A-Text: the text (class text: message refused)",
            "refused with 554 5.6.0: No counterpart here for X-A-Text (lost: the text)",
        ),
        (
            "X-A-Test: v",
            "X-A-Test: test mode (class test_mode: message discarded)",
            "discarded, answered with 250: X-A-Test (test mode)",
        ),
    ],
)
def test_explanation_of_a_message_that_does_not_leave_says_what_would_be_set(
    field: str, effect: str, decision: str
) -> None:
    """Nothing was set or removed in a message that nobody gets."""
    assert lines("X-A-Tag: a", field) == [
        "providers  acme",
        "would set  X-Cmail-GroupName: a",
        "           from X-A-Tag, acme.yaml:5",
        "would set  X-Cmail-InlineCSS: false",
        "           because the app says nothing: when_absent for acme",
        f"lost       {effect}",
        f"           acme.yaml:{11 if 'Text' in field else 12}",
        "group      a",
        f"decision   {decision}",
        "",
    ]


def test_explanation_tells_two_providers_without_a_place() -> None:
    """A remark on the message as a whole has no rule."""
    found = explain(run(engine(), "X-Mailgun-Tag: a", "X-MC-Tags: b"))
    assert "remark     two_providers: fields of mailgun, mandrill in one message\ngroup" in found


@pytest.mark.parametrize("field", [b"X-PM-Tag", b"X-Cmail-GroupName"])
def test_explanation_lets_no_line_break_or_control_of_a_value_through(field: bytes) -> None:
    """A group cannot forge a line of the report, nor paint on the terminal of who reads it; native or not."""
    text = explain(run(engine(), field + b": =?utf-8?q?a=0D=0Adecision___refused=1B[31m=C2=85?="))
    assert "group      a decision refused[31m\ndecision   passed on\n" in text
