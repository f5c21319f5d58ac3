"""
Every field the five providers document or apps really send, and what becomes of it.

The table is written by hand from the provider fact sheet (its sections 3 to 7) and not from the rule files, so that a
rule that is lost there is missed here. Each field stands alone in a message of two recipients, with a value that is in
use, and each is translated, or lost with a class, or only removed, or kept.
"""

import json

import pytest

from tests.translate.drive import CLICKS, CSS, FIVE, GROUP, OPENS, engine, kinds, rules_of, run, shipped, values

KEPT = "kept"
Fate = tuple[str, dict[str, str], list[str]]
"""A field with its value, what is set, and the classes of what is lost; ``kept`` among them for one that stays."""

UTC = "Fri, 27 Nov 2026 09:00:00 +0000"

FIELDS: dict[str, list[Fate]] = {
    "mailgun": [
        ("X-Mailgun-Tag: a, b", {GROUP: "a, b"}, []),
        ("X-Mailgun-Campaign-Id: fy1k", {GROUP: "fy1k"}, []),
        ("X-Mailgun-Track: yes", {OPENS: "true", CLICKS: "true"}, []),
        ("X-Mailgun-Track: htmlonly", {OPENS: "true", CLICKS: "true"}, []),
        ("X-Mailgun-Track: false", {OPENS: "false", CLICKS: "false"}, []),
        ("X-Mailgun-Track-Clicks: no", {CLICKS: "false"}, []),
        ("X-Mailgun-Track-Clicks: htmlonly", {CLICKS: "true"}, []),
        ("X-Mailgun-Track-Opens: true", {OPENS: "true"}, []),
        ("X-Mailgun-Drop-Message: yes", {}, ["test_mode"]),
        ('X-Mailgun-Recipient-Variables: {"r0@example.com": {"name": "A"}}', {}, ["privacy", "text"]),
        ("Content-Type: multipart/mailgun-variables; boundary=b", {}, [KEPT, "privacy", "text"]),
        ("X-Mailgun-Template-Name: welcome", {}, ["text"]),
        ("X-Mailgun-Template-Version: v2", {}, ["content"]),
        ('X-Mailgun-Template-Variables: {"name": "A"}', {}, ["content"]),
        (f"X-Mailgun-Deliver-By: {UTC}", {}, ["time"]),
        ("X-Mailgun-Deliver-Within: 1h", {}, ["time"]),
        ("X-Mailgun-Delivery-Time-Optimize-Period: 24h", {}, ["time"]),
        ("X-Mailgun-Time-Zone-Localize: 09:00", {}, ["time"]),
        ('X-Mailgun-Variables: {"order": "1"}', {}, ["metadata"]),
        ("X-Mailgun-Require-TLS: true", {}, ["content"]),
        ("X-Mailgun-Skip-Verification: yes", {}, ["infrastructure"]),
        ("X-Mailgun-Dkim: yes", {}, []),
        ("X-Mailgun-Dkim: no", {}, ["infrastructure"]),
        ("X-Mailgun-Secondary-DKIM: example.com/s1", {}, ["infrastructure"]),
        ("X-Mailgun-Secondary-DKIM-Public: example.com/s2", {}, ["infrastructure"]),
        ("X-Mailgun-Sending-Ip: 192.0.2.1", {}, ["infrastructure"]),
        ("X-Mailgun-Sending-Ip-Pool: p1", {}, ["infrastructure"]),
        ("X-Mailgun-Track-Pixel-Location-Top: yes", {}, []),
        ("X-Mailgun-Native-Send: true", {}, []),
        ("List-Unsubscribe: <%unsubscribe_email%>", {}, [KEPT, "unsubscribe"]),
        ("List-Unsubscribe: <%unsubscribe_url%>", {}, [KEPT, "unsubscribe"]),
        ("List-Unsubscribe: <%tag_unsubscribe_url%>", {}, [KEPT, "unsubscribe"]),
        ("List-Unsubscribe: <%mailing_list_unsubscribe_url%>", {}, [KEPT, "unsubscribe"]),
        ("X-Mailgun-Incoming: Yes", {}, [KEPT]),
        ("X-Mailgun-Sid: WyJ=", {}, [KEPT]),
        ("X-Mailgun-Sflag: No", {}, [KEPT]),
        ("X-Mailgun-Sscore: 0.1", {}, [KEPT]),
        ("X-Mailgun-Spf: Pass", {}, [KEPT]),
        ("X-Mailgun-Dkim-Check-Result: Pass", {}, [KEPT]),
    ],
    "mailjet": [
        ("X-Mailjet-Campaign: https://example.com/#7", {GROUP: "https://example.com/#7"}, []),
        ("X-MJ-Campaign: c", {GROUP: "c"}, []),
        ("X-Mailjet-TrackOpen: 0", {OPENS: "false"}, []),
        ("X-Mailjet-TrackOpen: 2", {OPENS: "true"}, ["ambiguous"]),
        ("X-Mailjet-TrackClick: 1", {CLICKS: "true"}, []),
        ("X-Mailjet-TrackClick: 2", {CLICKS: "true"}, ["ambiguous"]),
        ("X-MJ-TrackOpen: 0", {OPENS: "false"}, []),
        ("X-MJ-TrackClick: 0", {CLICKS: "false"}, []),
        ("X-MJ-TrackOpens: 1", {OPENS: "true"}, []),
        ("X-MJ-TrackClicks: true", {CLICKS: "true"}, []),
        ("X-MJ-TemplateID: 12", {}, ["text"]),
        ("X-MJ-TemplateLanguage: True", {}, ["text"]),
        ('X-MJ-Vars: {"name": "A"}', {}, ["content"]),
        ("X-MJ-TemplateErrorReporting: ops@example.com", {}, ["infrastructure"]),
        ("X-MJ-TemplateErrorDeliver: deliver", {}, ["infrastructure"]),
        ("X-MJ-TemplateErrorDeliver: 0", {}, []),
        ("X-Mailjet-DeduplicateCampaign: y", {}, ["duplicates"]),
        ("X-MJ-CustomID: 7", {}, ["metadata"]),
        ("X-MJ-CUSTOMID: 7", {}, ["metadata"]),
        ("X-MJ-EventPayload: anything", {}, ["metadata"]),
        ("X-MJ-EventPayLoad: {}", {}, ["metadata"]),
        ("X-Mailjet-Prio: 3", {}, ["infrastructure"]),
        ("X-Mailjet-Prio: 2", {}, []),
        ("X-MJ-MonitoringCategory: m", {}, ["infrastructure"]),
        ("X-Mailjet-Debug: 1", {}, ["infrastructure"]),
        ("X-Mailjet-Segmentation: 1", {}, ["infrastructure"]),
        ("X-MJ-WorkflowID: 1", {}, ["infrastructure"]),
        ("X-MJ-MID: 1", {}, ["infrastructure"]),
        ("X-MJ-ErrorMessage: e", {}, ["infrastructure"]),
        ("X-MJ-StatisticsContactsListID: 1", {}, ["infrastructure"]),
        # Reserved in Mailjet's interface, but written by senders of all kinds: they are fields of mail like any other.
        ("X-Feedback-Id: a:b:c:d", {}, [KEPT]),
        ("X-CSA-Complaints: csa@example.com", {}, [KEPT]),
    ],
    "mandrill": [
        ("X-MC-Tags: , _x, a, b", {GROUP: "a"}, []),
        ("X-MC-Track: opens", {OPENS: "true", CLICKS: "false"}, []),
        ("X-MC-Track: opens, clicks", {OPENS: "true", CLICKS: "true"}, []),
        ("X-MC-Track: clicks_all", {OPENS: "false", CLICKS: "true"}, []),
        ("X-MC-Track: clicks_htmlonly", {OPENS: "false", CLICKS: "true"}, []),
        ("X-MC-Track: clicks_textonly", {OPENS: "false", CLICKS: "false"}, ["metadata"]),
        ("X-MC-Track: none", {OPENS: "false", CLICKS: "false"}, []),
        ("X-MC-Track: noclicks", {OPENS: "false", CLICKS: "false"}, []),
        ("X-MC-Track: disable", {OPENS: "false", CLICKS: "false"}, []),
        ("X-MC-Track:", {OPENS: "false", CLICKS: "false"}, []),
        ("X-MC-Tracks: opens", {OPENS: "true", CLICKS: "false"}, []),
        ("X-MC-InlineCSS: 1", {CSS: "true"}, []),
        ("X-MC-InlineCSS: off", {CSS: "false"}, []),
        ("X-MC-PreserveRecipients: false", {}, ["privacy"]),
        ("X-MC-PreserveRecipients: yes", {}, []),
        ('X-MC-MergeVars: {"name": "A"}', {}, ["text"]),
        ("X-MC-MergeLanguage: handlebars", {}, ["content"]),
        ("X-MC-Template: name|block", {}, ["text"]),
        ("X-MC-BccAddress: archive@example.com", {}, ["recipients"]),
        ("X-MC-SendAt: 2026-11-27 09:00:00", {}, ["time"]),
        ("X-MC-Autotext: no", {}, ["infrastructure"]),
        ("X-MC-AutoText: 1", {}, []),
        ("X-MC-AutoHtml: on", {}, ["content"]),
        ('X-MC-Metadata: {"order": "1"}', {}, ["metadata"]),
        ('X-MC-Meta: {"order": "1"}', {}, ["metadata"]),
        ("X-MC-GoogleAnalytics: example.com", {}, ["links"]),
        ("X-MC-GoogleAnalyticsCampaign: c", {}, ["links"]),
        ("X-MC-URLStripQS: y", {}, ["infrastructure"]),
        ("X-MC-ViewContentLink: false", {}, ["content"]),
        ("X-MC-ViewContentLink: true", {}, []),
        ("X-MC-Important: true", {}, ["infrastructure"]),
        ("X-MC-Important: false", {}, []),
        ("X-MC-Subaccount: s", {}, ["metadata"]),
        ("X-MC-TrackingDomain: t.example.com", {}, ["infrastructure"]),
        ("X-MC-SigningDomain: example.com", {}, ["infrastructure"]),
        ("X-MC-ReturnPathDomain: b.example.com", {}, ["infrastructure"]),
        ("X-MC-IpPool: p", {}, ["infrastructure"]),
        ("X-MC-User: u", {}, [KEPT]),
        ("X-Mandrill-User: u", {}, [KEPT]),
        # Of two other systems.
        ("X-MC-Unique: u", {}, [KEPT]),
        ("X-MC-Loop-Signature: s", {}, [KEPT]),
        ("X-MC-Ingress-Time: 1", {}, [KEPT]),
    ],
    "postmark": [
        ("X-PM-Tag: orders, eu", {GROUP: "orders, eu"}, []),
        ("X-PostmarkTag: a", {GROUP: "a"}, []),
        ("X-Postmark-Tag: a", {GROUP: "a"}, []),
        ("X-PM-Tags: a", {}, []),
        ("X-PM-TrackOpens: true", {OPENS: "true"}, []),
        ("X-PM-Track-Opens: false", {OPENS: "false"}, []),
        ("X-PM-TrackLinks: None", {CLICKS: "false"}, []),
        ("X-PM-TrackLinks: HtmlAndText", {CLICKS: "true"}, []),
        ("X-PM-TrackLinks: HtmlOnly", {CLICKS: "true"}, []),
        ("X-PM-TrackLinks: TextOnly", {CLICKS: "false"}, ["metadata"]),
        ("X-PM-Track-Links: false", {CLICKS: "false"}, []),
        ("X-PM-Track-Links: true", {CLICKS: "true"}, []),
        ("X-PM-Message-Stream: outbound", {}, ["metadata"]),
        ("X-PM-Message-Stream: broadcasts", {}, ["metadata", "unsubscribe"]),
        ("X-PM-Metadata-order: 1", {}, ["metadata"]),
        ("X-PM-KeepID: true", {}, []),
        ("X-PM-Message-Id: 1", {}, [KEPT]),
    ],
    "sendgrid": [
        ("X-SendGrid-Category: a", {GROUP: "a"}, []),
        ("X-SG-EID: e", {}, [KEPT]),
        ("X-SG-ID: i", {}, [KEPT]),
        ("X-Message-ID: m", {}, [KEPT]),
    ],
}


def on(name: str, **settings: object) -> dict[str, object]:
    """A filter of X-SMTPAPI that is switched on."""
    return {"filters": {name: {"settings": {"enable": 1, **settings}}}}


SMTPAPI: list[tuple[dict[str, object], dict[str, str], list[str]]] = [
    ({"category": "a"}, {GROUP: "a"}, []),
    ({"category": ["a", "b"]}, {GROUP: "a"}, []),
    (on("opentrack"), {OPENS: "true"}, []),
    (on("opentrack", replace="%open%"), {OPENS: "true"}, ["content"]),
    (on("clicktrack"), {CLICKS: "true"}, []),
    (on("clicktrack", enable_text=True), {CLICKS: "true"}, ["metadata"]),
    ({"filters": {"clicktrack": {"settings": {"enable": "0", "enable_text": False}}}}, {CLICKS: "false"}, []),
    ({"to": ["other@example.com"]}, {}, ["privacy", "recipients"]),
    ({"to": ["r1@example.com", "r0@example.com"]}, {}, ["privacy"]),
    ({"sub": {"-name-": ["A", "B"]}}, {}, ["text"]),
    ({"section": {"-hello-": "Hello"}}, {}, ["text"]),
    ({"dynamic_template_data": {"name": "A"}}, {}, ["text"]),
    (on("templates", template_id="1"), {}, ["text"]),
    (on("template", **{"text/html": "<% body %>"}), {}, ["text"]),
    (on("footer", **{"text/plain": "bye"}), {}, ["content"]),
    ({"send_at": 1800000000}, {}, ["time"]),
    ({"send_each_at": [1800000000, 1800000001]}, {}, ["time"]),
    ({"batch_id": "b"}, {}, ["time"]),
    ({"asm_group_id": 7}, {}, ["unsubscribe"]),
    ({"asm_groups_to_display": [7, 8]}, {}, ["unsubscribe"]),
    ({"asm": {"group_id": 7}}, {}, ["unsubscribe"]),
    ({"asm": {"groups_to_display": [7]}}, {}, ["unsubscribe"]),
    ({"asm_group_id": {}}, {}, []),
    (on("subscriptiontrack"), {}, ["unsubscribe"]),
    ({"filters": {"subscriptiontrack": {"settings": {"enable": 0, "replace": "%unsub%"}}}}, {}, []),
    (on("bypass_list_management"), {}, ["unsubscribe"]),
    (on("bcc", email="archive@example.com"), {}, ["recipients"]),
    (on("spamcheck"), {}, ["infrastructure"]),
    (on("ganalytics", utm_source="s"), {}, ["links"]),
    ({"filters": {"dkim": {"settings": {"domain": "example.com"}}}}, {}, ["infrastructure"]),
    ({"ip_pool": "p"}, {}, ["infrastructure"]),
    ({"unique_args": {"customer": "1"}}, {}, ["metadata"]),
]

CASES = [
    *(pytest.param(provider, *fate, id=f"{provider}-{fate[0]}") for provider in FIVE for fate in FIELDS[provider]),
    *(
        pytest.param("sendgrid", f"X-SMTPAPI: {json.dumps(document)}", *rest, id=f"sendgrid-{json.dumps(document)}")
        for document, *rest in SMTPAPI
    ),
]


@pytest.mark.parametrize(("provider", "field", "expected", "classes"), CASES)
def test_field_of_the_provider_is_translated_or_lost_or_removed_or_kept(
    provider: str, field: str, expected: dict[str, str], classes: list[str]
) -> None:
    """Nothing that a provider documents or its apps send is unknown here, and nothing of another kind is touched."""
    found = run(engine(), field, to=2)
    assert values(found) == expected
    assert sorted({loss.loss_class for loss in found.losses}) == [each for each in classes if each != KEPT]
    assert kinds(found) == []
    assert found.removed == (() if KEPT in classes else (field.partition(":")[0],))
    mine = {loss.provider for loss in found.losses} | {setting.provider for setting in found.settings}
    assert mine <= {provider}


def test_every_field_of_the_rule_files_is_in_the_table() -> None:
    """A field that comes to a rule file comes to the table as well; only patterns have a field of the kind here."""
    told = {name: {fate[0].partition(":")[0].lower() for fate in fates} for name, fates in FIELDS.items()}
    told["sendgrid"].add("x-smtpapi")
    for file in shipped(*FIVE):
        names = {spelled for spelled in file.spelled if not spelled.endswith("*")}
        names |= {name for rule in rules_of(file) for name in rule.selector.names.values()}
        missing = {name for name in names if name.lower().removeprefix("!") not in told[file.provider]}
        assert missing <= {"X-PM-Metadata-*"}


def test_every_path_of_the_rules_for_x_smtpapi_is_in_the_table() -> None:
    """The same for the keys of the JSON document."""

    def paths(value: object, at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        inner = [paths(each, (*at, key)) for key, each in value.items()] if isinstance(value, dict) else []
        return {at}.union(*inner)

    told = set().union(*(paths(document) for document, *_ in SMTPAPI))
    (file,) = shipped("sendgrid")
    assert {path for rule in rules_of(file) for path in rule.selector.paths} <= told


@pytest.mark.parametrize("field", ["X-Mailjet-TrackOpens: 0", "X-Mailjet-TrackClicks: 0", "X-Mailgun-New: 1"])
def test_field_nobody_has_seen_is_removed_and_told(field: str) -> None:
    """What only the pattern knows leaves with the others, and an operator reads of it."""
    found = run(engine(), field)
    assert (values(found), kinds(found)) == ({}, ["unknown_field"])
    assert found.removed == (field.partition(":")[0],)
