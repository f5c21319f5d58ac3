"""Who has the say on a target: native field, provider of the login, field order, rank of names; and what is removed."""

import pytest

from proxy.translate.model import Action, Strip
from proxy.translate.outcome import Remark, Setting
from tests.translate.drive import (
    CLICKS,
    CSS,
    FIVE,
    GROUP,
    OPENS,
    PROVIDER_DEFAULTS,
    engine,
    kinds,
    octets,
    own,
    run,
    values,
    written,
)

TWO = "title: Two\nfields: [X-A, X-B, X-C]\ntranslate:\n"


# Native fields


@pytest.mark.parametrize(
    "native", ["X-Cmail-GroupName: native", "x-CMAIL-groupname : native", "X-Cmail-Groupname:\r\n native"]
)
@pytest.mark.parametrize("first", [True, False])
def test_native_field_wins_for_its_target_only(native: str, first: bool) -> None:
    """What the app itself told the platform is never overruled; the provider still decides the rest."""
    fields = ["X-PM-Tag: a", "X-PM-TrackOpens: false"]
    found = run(engine(), *([native, *fields] if first else [*fields, native]))
    assert values(found) == {OPENS: "false"}
    assert found.group == "native"
    assert found.section is not None
    assert found.section.count(native.encode()) == 1
    assert found.removed == ("X-PM-Tag", "X-PM-TrackOpens")


def test_native_field_wins_over_the_defaults_of_the_provider() -> None:
    """A native switch is no reason to write a second one."""
    found = run(engine(**PROVIDER_DEFAULTS), "X-Cmail-TrackOpens: true", "X-PM-Tag: a")
    assert values(found) == {GROUP: "a", CLICKS: "false", CSS: "false"}


@pytest.mark.parametrize("empty", ["X-Cmail-GroupName:", "X-Cmail-GroupName: \t ", "X-Cmail-GroupName: =?utf-8?q?_?="])
def test_native_field_that_is_empty_is_replaced(empty: str) -> None:
    """An empty field says nothing: where a provider says something, it goes, so that the platform sees one group."""
    found = run(engine(), empty, "Subject: s", "X-PM-Tag: a", "X-Cmail-GroupName:")
    assert found.section == octets("Subject: s", "X-Cmail-GroupName: a")
    assert found.removed == ("X-Cmail-GroupName", "X-PM-Tag", "X-Cmail-GroupName")
    assert found.group == "a"


def test_native_field_that_is_empty_stays_where_nobody_says_more() -> None:
    """Without anything to put in its place an empty native field is an ordinary field."""
    assert run(engine(), "X-Cmail-GroupName:", "Subject: s").section is None
    assert run(engine(), "X-Cmail-GroupName:", "X-PM-KeepID: true").section == octets("X-Cmail-GroupName:")


def test_native_fields_of_which_one_says_something_both_stay() -> None:
    """The first that is not empty counts, and none is touched."""
    found = run(engine(), "X-Cmail-GroupName:", "X-Cmail-GroupName: b", "X-PM-Tag: a")
    assert found.section == octets("X-Cmail-GroupName:", "X-Cmail-GroupName: b")
    assert found.group == "b"


def test_native_group_outside_ascii_is_reported_decoded() -> None:
    """The log names the group as people read it."""
    assert run(engine(), "X-Cmail-GroupName: =?utf-8?q?caf=C3=A9?=").group == "caf\u00e9"


# Login, listener, field order


def test_provider_of_the_login_wins_wherever_its_fields_stand() -> None:
    """The configured provider decides; the other one's say is only told."""
    fields = ["X-MC-Tags: m", "X-MC-Track: none", "X-PM-Tag: p"]
    assert values(run(engine(), *fields, provider="postmark")) == {GROUP: "p", OPENS: "false", CLICKS: "false"}
    assert values(run(engine(), *fields, provider="mandrill")) == {GROUP: "m", OPENS: "false", CLICKS: "false"}


def test_provider_of_the_login_without_a_say_leaves_field_order() -> None:
    """A configured provider that does not speak of a target does not silence another."""
    assert values(run(engine(), "X-PM-Tag: p", "X-MC-Tags: m", provider="sendgrid")) == {GROUP: "p"}


def test_field_order_decides_without_a_login_of_a_provider() -> None:
    """The field that stands first counts, target by target."""
    found = run(
        engine(), "X-PM-TrackOpens: true", "X-MC-Track: none", "X-PM-TrackLinks: None", "X-MC-Tags: m", "X-PM-Tag: p"
    )
    assert values(found) == {GROUP: "m", OPENS: "true", CLICKS: "false"}
    assert [setting.provider for setting in found.settings] == ["mandrill", "postmark", "mandrill"]


@pytest.mark.parametrize("order", [FIVE, FIVE[::-1]])
def test_order_of_rule_files_decides_nothing(order: tuple[str, ...]) -> None:
    """The settings list providers as a set: messages do not change when the list is sorted."""
    found = run(engine(*order), "X-Mailjet-Campaign: j", "X-Mailgun-Tag: g")
    assert (values(found), found.providers) == ({GROUP: "j"}, ("mailjet", "mailgun"))


def test_two_providers_in_one_message_are_remarked_once() -> None:
    """The remark names them in field order."""
    found = run(engine(), "X-PM-KeepID: true", "X-MC-Tags: m", "X-PM-Tag: p", "X-MC-Tags: n")
    assert found.remarks == (Remark("two_providers", "", "", "fields of postmark, mandrill in one message"),)
    assert found.providers == ("postmark", "mandrill")


def test_fields_that_two_providers_share_are_of_both() -> None:
    """A name that two files list belongs to both of them."""
    text = "title: x\nfields: [X-Tags]\ntranslate: [{field: X-Tags, to: X-Cmail-GroupName}]\n"
    found = run(own(text, text.replace("title: x", "title: y")), "X-Tags: t", provider="b")
    assert (found.providers, [setting.provider for setting in found.settings]) == (("acme", "b"), ["b"])


# Within a file


def test_rules_in_order_count_before_field_order() -> None:
    """Mailgun's tag beats its campaign, and the specific switch the general one, whatever stands first."""
    found = run(
        engine(), "X-Mailgun-Campaign-Id: c", "X-Mailgun-Track: no", "X-Mailgun-Tag: t", "X-Mailgun-Track-Clicks: yes"
    )
    assert values(found) == {GROUP: "t", OPENS: "false", CLICKS: "true"}
    assert [setting.source for setting in found.settings] == [
        "X-Mailgun-Tag",
        "X-Mailgun-Track",
        "X-Mailgun-Track-Clicks",
    ]


def test_aliases_count_by_rank_before_field_order() -> None:
    """The official name beats its misspellings."""
    found = run(engine(), "X-Postmark-Tag: c", "X-PostmarkTag: b", "X-PM-Tag: a")
    assert values(found) == {GROUP: "a"}
    assert values(run(engine(), "X-Postmark-Tag: c", "X-PostmarkTag: b")) == {GROUP: "b"}
    assert values(run(engine(), "X-PM-Tag:", "X-Postmark-Tag: c")) == {GROUP: "c"}


@pytest.mark.parametrize(
    ("fields", "group"),
    [
        (["X-Mailgun-Tag: a", "X-Mailgun-Tag: b"], "a"),
        (["X-Mailgun-Tag:", "x-mailgun-tag: \t", "X-Mailgun-Tag: b"], "b"),
        (["X-Mailgun-Tag: =?utf-8?q?_=0D=0A?=", "X-Mailgun-Tag: b"], "b"),
        (["X-Mailgun-Tag: =?utf-8?q?=00=E2=80=A8?=", "X-Mailgun-Tag: b"], "b"),
        (["X-MC-Tags: , _x ,,", "X-MC-Tags: b"], "b"),
    ],
)
def test_repeated_fields_count_in_message_order(fields: list[str], group: str) -> None:
    """The first that is not empty after decoding and trimming is the group."""
    assert values(run(engine(), *fields)) == {GROUP: group}


def test_setting_names_its_rule_by_file_and_line() -> None:
    """An operator finds the line that decided."""
    rules = own(f"{TWO}  - {{field: X-A, to: X-Cmail-GroupName}}\n  - {{field: [X-B, X-C], to: X-Cmail-GroupName}}\n")
    assert run(rules, "x-c: v").settings == (Setting(GROUP, "v", "acme", "X-C", "acme.yaml:5"),)


def test_settings_are_written_in_the_platforms_order_in_place_of_the_first_control_field() -> None:
    """New fields stand where the app put its own, in one fixed order, and the rest of the section is untouched."""
    found = run(engine(), "A: 1", "X-MC-Track: opens", "B: 2", "X-MC-InlineCSS: yes", "X-MC-Tags: t", "C: 3")
    assert found.section == octets(
        "A: 1", f"{GROUP}: t", f"{OPENS}: true", f"{CLICKS}: false", f"{CSS}: true", "B: 2", "C: 3"
    )
    assert found.removed == ("X-MC-Track", "X-MC-InlineCSS", "X-MC-Tags")


def test_same_message_gives_the_same_translation_every_time() -> None:
    """Nothing depends on hashing or on what was translated before."""
    fields = [f"X-{name}: {value}" for name, value in zip("ABCDEFGH", "stuvwxyz", strict=True)]
    fields += [
        "X-PM-Metadata-z: 1",
        "X-MC-Meta: {}",
        "X-Mailgun-Variables: {}",
        "X-MJ-CustomID: 1",
        "X-MC-Important: 1",
    ]
    fields += ["X-Mailgun-Tag: a", "X-SMTPAPI: {", "X-PM-Message-Stream: broadcast", "X-PM-TrackOpens: perhaps"]
    first = run(engine(**PROVIDER_DEFAULTS), *fields, to=3)
    again = engine(**PROVIDER_DEFAULTS)
    for _ in range(3):
        run(again, *fields[::-1])
        assert run(again, *fields, to=3) == first
    assert [loss.source for loss in first.losses] == [
        "X-PM-Metadata-*",
        "X-MC-Meta",
        "X-Mailgun-Variables",
        "X-MJ-CustomID",
        "X-MC-Important",
        "X-PM-Message-Stream broadcast",
        "X-PM-Message-Stream",
    ]


# Values that do not parse


def test_invalid_value_claims_its_target_and_nothing_falls_through() -> None:
    """What the app wanted is not guessed from a more general field, an alias or a second provider of lower rank."""
    found = run(engine(), "X-Mailgun-Track-Opens: perhaps", "X-Mailgun-Track: no", "X-PM-Track-Opens: false")
    assert values(found) == {CLICKS: "false"}
    assert kinds(found) == ["two_providers", "invalid_value"]
    remark = found.remarks[1]
    assert (remark.provider, remark.source) == ("mailgun", "X-Mailgun-Track-Opens")
    assert remark.text == "X-Cmail-TrackOpens not set: an unknown word"
    assert remark.where.startswith("mappings/mailgun.yaml:")
    assert found.action is Action.IGNORE
    assert found.removed == ("X-Mailgun-Track-Opens", "X-Mailgun-Track", "X-PM-Track-Opens")


@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        (["X-Mailgun-Track: perhaps", "X-Mailgun-Track: no"], {}),
        (["X-PM-TrackOpens: perhaps", "X-PM-Track-Opens: no"], {}),
        (["X-MJ-TrackOpen: perhaps", "X-Mailjet-TrackOpen: 0"], {OPENS: "false"}),
        (["X-MC-Track: opens,everything"], {}),
        (['X-SMTPAPI: {"category":{"a":"b"}}', "X-SendGrid-Category: c"], {}),
        (['X-SMTPAPI: {"category":true}', "X-SendGrid-Category: c"], {}),
        (['X-SMTPAPI: {"category":[["a"]]}', "X-SendGrid-Category: c"], {}),
        (["X-SMTPAPI: [1]", "X-SendGrid-Category: c"], {}),
        (['X-SMTPAPI: {"category":[]}', "X-SendGrid-Category: c"], {GROUP: "c"}),
        (["X-SMTPAPI: ", "X-SendGrid-Category: c"], {GROUP: "c"}),
    ],
)
def test_invalid_value_stops_the_search_where_it_stands(fields: list[str], setting: dict[str, str]) -> None:
    """A better-ranked invalid value ends the search; an empty one does not."""
    assert values(run(engine(), *fields)) == setting


def test_invalid_value_of_the_login_provider_outranks_another_provider() -> None:
    """The one who has the say said something that cannot be read: nothing is taken from the other."""
    fields = ["X-PM-TrackOpens: true", "X-Mailgun-Track-Opens: perhaps"]
    assert values(run(engine(), *fields, provider="mailgun")) == {}
    assert values(run(engine(), *fields)) == {OPENS: "true"}


def test_invalid_value_is_no_reason_for_a_default() -> None:
    """The app did say something, so the provider's default does not count either."""
    found = run(engine(**PROVIDER_DEFAULTS), "X-PM-TrackOpens: perhaps")
    assert values(found) == {CLICKS: "false", CSS: "false"}


def test_invalid_value_is_refused_by_setting() -> None:
    """``rules.on_invalid: refuse`` names field and reason."""
    found = run(engine(refuse_invalid=True), "X-PM-TrackOpens: perhaps")
    assert (found.action, found.reason) == (Action.REFUSE, "X-PM-TrackOpens cannot be read: an unknown word")


@pytest.mark.parametrize(("word", "setting"), [("refuse", False), ("pass", True)])
def test_invalid_value_is_treated_as_the_rule_says_rather_than_the_setting(word: str, setting: bool) -> None:
    """``on_invalid`` on a rule outranks the setting, in both directions."""
    rules = own(
        f"{TWO}  - {{field: X-A, to: {OPENS}, as: switch, on_invalid: {word}}}\n"
        f"  - {{field: X-B, to: {CLICKS}, as: switch}}\n",
        refuse_invalid=setting,
    )
    assert run(rules, "X-A: perhaps").action is (Action.REFUSE if word == "refuse" else Action.IGNORE)
    assert run(rules, "X-B: perhaps").action is (Action.IGNORE if word == "refuse" else Action.REFUSE)


# Optional rules


@pytest.mark.parametrize(
    ("name", "field"),
    [("customid", "X-MJ-CustomID"), ("subaccount", "X-MC-Subaccount"), ("message_stream", "X-PM-Message-Stream")],
)
def test_optional_rule_counts_only_when_it_is_named(name: str, field: str) -> None:
    """A fallback that not every team wants is off until the settings name it."""
    assert values(run(engine(), f"{field}: v")) == {}
    assert values(run(engine(optional=frozenset({name})), f"{field}: v")) == {GROUP: "v"}


def test_optional_rule_ranks_behind_the_official_one() -> None:
    """Naming a fallback does not change messages that have a proper group."""
    rules = engine(optional=frozenset({"subaccount"}))
    assert values(run(rules, "X-MC-Subaccount: s", "X-MC-Tags: t")) == {GROUP: "t"}


# What leaves


MIXED = ["A: 1", "X-PM-Tag: a", "X-PM-KeepID: true", "X-PM-Metadata-k: v", "X-SG-EID: 1", "X-MC-User: u"]


@pytest.mark.parametrize(
    ("strip", "removed"),
    [(Strip.ALL, ("X-PM-Tag", "X-PM-KeepID", "X-PM-Metadata-k")), (Strip.TRANSLATED, ("X-PM-Tag",)), (Strip.NONE, ())],
)
def test_strip_removes_all_or_the_translated_or_no_control_fields(strip: Strip, removed: tuple[str, ...]) -> None:
    """Control fields carry personal data to readers; what is none of them always stays."""
    found = run(engine(strip=strip), *MIXED)
    kept = [field for field in MIXED if field.partition(":")[0] not in removed]
    assert found.removed == removed
    assert found.section == octets(kept[0], f"{GROUP}: a", *kept[1:])


def test_strip_all_removes_fields_of_every_active_file_and_of_no_other() -> None:
    """What no active file lists is not ours."""
    found = run(engine("postmark"), "X-PM-Tag: a", "X-MC-Tags: b")
    assert (found.removed, kinds(found)) == (("X-PM-Tag",), [])


def test_strip_translated_keeps_the_field_of_an_optional_rule_that_is_off() -> None:
    """A rule that does not count translates nothing."""
    assert run(engine(strip=Strip.TRANSLATED), "X-MJ-CustomID: 1").section is None
    named = engine(strip=Strip.TRANSLATED, optional=frozenset({"customid"}))
    assert run(named, "X-MJ-CustomID: 1").removed == ("X-MJ-CustomID",)


def test_strip_translated_keeps_a_time_that_this_route_cannot_express() -> None:
    """What was not translated is not removed; on a route that waits it was, and is."""
    field = "X-MC-SendAt: 2026-11-23 09:00:00"
    found = run(engine(strip=Strip.TRANSLATED), field, "X-MC-Tags: a")
    assert (found.removed, [loss.loss_class for loss in found.losses]) == (("X-MC-Tags",), ["time"])
    later = run(engine(strip=Strip.TRANSLATED, deliver_later=True), field, "X-MC-Tags: a")
    assert later.removed == ("X-MC-SendAt", "X-MC-Tags")


def test_message_without_control_fields_is_untouched() -> None:
    """Nothing to do means no new section at all, with a provider's login too."""
    fields = [
        "From: a@example.com",
        "X-Mailgun-Sid: 1",
        "X-PM-Message-Id: 2",
        "X-Tag: symfony",
        "Content-Type: text/plain",
    ]
    assert run(engine(), *fields).section is None
    assert run(engine(), *fields, provider="mailgun").section is None


# Where an app says nothing


def test_when_absent_platform_writes_nothing() -> None:
    """By default the platform's own defaults hold."""
    assert values(run(engine(), "X-PM-Tag: a", provider="postmark")) == {GROUP: "a"}


@pytest.mark.parametrize(
    ("provider", "field", "defaults"),
    [
        ("mailgun", "X-Mailgun-Native-Send: true", {OPENS: "false", CLICKS: "false", CSS: "false"}),
        ("mailjet", "X-Mailjet-Prio: 2", {CSS: "false"}),
        ("mandrill", "X-MC-Important: false", {CSS: "false"}),
        ("postmark", "X-PM-KeepID: true", {OPENS: "false", CLICKS: "false", CSS: "false"}),
        ("sendgrid", "X-SMTPAPI: {}", {CSS: "false"}),
    ],
)
def test_when_absent_provider_writes_what_it_documents(provider: str, field: str, defaults: dict[str, str]) -> None:
    """Found by its fields or known by its login, a provider's defaults are kept."""
    assert values(run(engine(**PROVIDER_DEFAULTS), field)) == defaults
    assert values(run(engine(**PROVIDER_DEFAULTS), "Subject: s", provider=provider)) == defaults


def test_when_absent_takes_the_provider_of_the_login_first() -> None:
    """Whose account it is decides, not whose field stands first."""
    found = run(engine(**PROVIDER_DEFAULTS), "X-PM-KeepID: true", provider="sendgrid")
    assert values(found) == {CSS: "false"}
    assert [(setting.provider, setting.source) for setting in found.settings] == [("sendgrid", "")]


def test_when_absent_of_nobody_writes_nothing() -> None:
    """A message without a provider has no defaults but the platform's."""
    assert run(engine(**PROVIDER_DEFAULTS), "Subject: s").section is None
    assert run(engine(**PROVIDER_DEFAULTS), "Subject: s", provider="acme").section is None


def test_when_absent_table_of_the_operator_replaces_the_documented_one() -> None:
    """The operator mirrors the old account's switches; a provider not in the table has the platform's defaults."""
    rules = engine(when_absent={"mailgun": {OPENS: True, CSS: False}})
    assert values(run(rules, "X-Mailgun-Tag: a")) == {GROUP: "a", OPENS: "true", CSS: "false"}
    assert values(run(rules, "X-PM-Tag: a")) == {GROUP: "a"}


def test_when_absent_fields_go_to_the_end_where_there_is_no_control_field() -> None:
    """A message that only its login tells about gets the defaults behind its own fields."""
    found = run(engine(**PROVIDER_DEFAULTS), "Subject: s", "To: r0@example.com", provider="mandrill")
    assert found.section == octets("Subject: s", "To: r0@example.com", f"{CSS}: false")


# Signatures


@pytest.mark.parametrize(
    ("signature", "remarked"),
    [
        ("DKIM-Signature: v=1; h=from:x-pm-tag; b=x", True),
        ("DKIM-Signature: v=1; h=From : X-PM-Tag : To; b=x", True),
        ("dkim-signature: v=1; b=x;\r\n\th=from:\r\n\t x-pm-tag", True),
        ("DKIM-Signature: h=x-pm-tag", True),
        ("DKIM-Signature: v=1; h=from:to; b=x", False),
        ("DKIM-Signature: v=1; bh=x-pm-tag; b=x", False),
        ("DKIM-Signature: v=1; h=x-pm-tags; b=x", False),
        ("DKIM-Signature: nonsense", False),
    ],
)
def test_signature_over_a_removed_field_is_remarked(signature: str, remarked: bool) -> None:
    """A DKIM signature that covers what we remove will not verify; that is told, and nothing else changes."""
    found = run(engine(), signature, "From: a@example.com", "X-PM-Tag: a")
    remark = Remark("signature_broken", "", "DKIM-Signature", "it covers a field that was removed")
    assert found.remarks == ((remark,) if remarked else ())
    assert written(found)[signature.partition(":")[0]]


@pytest.mark.parametrize(
    ("signature", "texts"),
    [
        ("h=from:x-cmail-groupname", ["it covers a field that was added"]),
        ("h=from:X-Cmail-TrackClicks", ["it covers a field that was added"]),
        ("h=from:x-cmail-groupname:x-pm-tag", ["it covers a field that was removed"]),
        ("h=from:x-cmail-trackopens", []),
    ],
)
def test_signature_over_a_field_that_was_added_is_remarked(signature: str, texts: list[str]) -> None:
    """A name signed without a field of it (over-signing) forbids to add one."""
    found = run(engine(), f"DKIM-Signature: v=1; {signature}; b=x", "X-PM-Tag: a", "X-PM-TrackLinks: None")
    assert [(each.kind, each.text) for each in found.remarks] == [("signature_broken", text) for text in texts]
    silent = run(engine(**PROVIDER_DEFAULTS), "DKIM-Signature: h=x-cmail-trackopens", provider="postmark")
    assert kinds(silent) == ["signature_broken"]


def test_signature_stays_whole_where_nothing_is_removed() -> None:
    """With ``strip: none`` the signed field is still there."""
    found = run(engine(strip=Strip.NONE), "DKIM-Signature: h=x-pm-tag", "X-PM-Tag: a")
    assert kinds(found) == []
