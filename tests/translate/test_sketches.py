"""Two providers in a dozen rules each, as one would first write them down: the format must be enough for that."""

from pathlib import Path

import pytest

from proxy.translate.engine import Engine
from proxy.translate.model import Action, Policy
from proxy.translate.parse import load
from tests.translate.drive import CLICKS, CSS, GROUP, MAPPINGS, OPENS, PROVIDER_DEFAULTS, kinds, run, values

SKETCHES = Path(__file__).with_name("sketches")


@pytest.fixture(scope="module")
def sketched() -> Engine:
    """Both files in force, and no other."""
    files = load(("mandrill", "sendgrid"), (SKETCHES,), MAPPINGS)
    assert [file.title for file in files] == ["Mandrill (Mailchimp Transactional)", "SendGrid"]
    return Engine(files, Policy(**PROVIDER_DEFAULTS))


@pytest.mark.parametrize(
    ("fields", "expected", "lost"),
    [
        pytest.param(
            ("X-MC-Tags: _hidden, orders, shop", "X-MC-Track: opens, clicks_textonly", "X-MC-InlineCSS: true"),
            {GROUP: "orders", OPENS: "true", CLICKS: "false", CSS: "true"},
            {},
            id="mandrill-all-targets",
        ),
        pytest.param(
            ("X-MC-Track:", "X-MC-SendAt: 2026-11-24 08:00:00", 'X-MC-Metadata: {"order": "1"}'),
            {OPENS: "false", CLICKS: "false", CSS: "false"},
            {"X-MC-SendAt": Action.WARN, "X-MC-Metadata": Action.IGNORE},
            id="mandrill-empty-list-and-losses",
        ),
        pytest.param(
            ("X-MC-PreserveRecipients: false", "X-MC-Subaccount: shop"),
            {CSS: "false"},
            {"X-MC-PreserveRecipients": Action.REFUSE, "X-MC-Subaccount": Action.IGNORE},
            id="mandrill-hidden-recipients",
        ),
        pytest.param(
            (
                'X-SMTPAPI: {"category": ["", "orders"], "filters": {"opentrack": {"settings": {"enable": 1}},',
                ' "clicktrack": {"settings": {"enable": "0"}}}}',
            ),
            {GROUP: "orders", OPENS: "true", CLICKS: "false", CSS: "false"},
            {},
            id="sendgrid-all-targets",
        ),
        pytest.param(
            ('X-SMTPAPI: {"unique_args": {"a": "b"}, "send_at": 1795507200}', "X-SendGrid-Category: orders"),
            {GROUP: "orders", CSS: "false"},
            {"X-SMTPAPI send_at": Action.WARN, "X-SMTPAPI unique_args": Action.IGNORE},
            id="sendgrid-second-field-and-losses",
        ),
        pytest.param(
            (
                'X-SMTPAPI: {"to": ["other@example.com"], "sub": {"-name-": ["Ann"]}, "filters":',
                ' {"subscriptiontrack": {"settings": {"enable": 1}}}}',
            ),
            {CSS: "false"},
            {
                "X-SMTPAPI to": Action.REFUSE,
                "X-SMTPAPI sub": Action.REFUSE,
                "X-SMTPAPI filters.subscriptiontrack.settings.enable": Action.WARN,
            },
            id="sendgrid-mail-merge",
        ),
    ],
)
def test_sketched_provider_is_translated(
    sketched: Engine, fields: tuple[str, ...], expected: dict[str, str], lost: dict[str, Action]
) -> None:
    """Every target is reached, each loss has the action of its class, and nothing is odd about any of it."""
    translation = run(sketched, *fields, to=2)
    assert values(translation) == expected
    assert {loss.source: loss.action for loss in translation.losses} == lost
    assert kinds(translation) == []
    assert translation.section is not None
    assert b"X-MC-" not in translation.section
    assert b"X-SMTPAPI" not in translation.section
