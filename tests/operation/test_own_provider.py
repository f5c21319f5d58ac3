"""A provider of one's own: a YAML file in a folder that the settings name, and no Python."""

from pathlib import Path

from tests.operation.program import line_with, run, write_settings
from tests.smtp_in.site import site

ACME = """\
# Rules for a provider that does not exist.
title: Acme Mail
reference: https://acme.example/docs
fields: [X-Acme-*, "!X-Acme-Trace"]
json: {X-Acme-Options: {}}
translate:
  - {field: [X-Acme-Label, X-Acme-Lable], to: X-Cmail-GroupName, list: "|"}
  - {field: X-Acme-Options, at: watch.opens, to: X-Cmail-TrackOpens, as: switch, true_if: [sure]}
  - {field: X-Acme-Inline, to: X-Cmail-InlineCSS, as: switch}
when_absent: {X-Cmail-TrackClicks: false}
untranslatable:
  - {field: X-Acme-Options, at: mailmerge, class: text, loses: place-holders stay}
  - {field: X-Acme-Footer, when: enabled, class: content, loses: footer}
"""
MESSAGE = (
    b"From: app@example.com\r\n"
    b"X-Acme-Trace: 4711\r\n"
    b"x-acme-lable: =?utf-8?q?Gr=C3=BC=C3=9Fe?= | second\r\n"
    b'X-Acme-Options: {"watch":\r\n {"opens": "Sure"}}\r\n'
    b"X-Acme-Footer: on\r\n"
    b"Subject: hi\r\n"
    b"\r\n"
    b"body\r\n"
    b".\r\n"
)


def test_invented_provider_is_translated_by_its_rule_file_alone(tmp_path: Path) -> None:
    """A file in a folder of rules.directories is all it takes: fields, losses, refusals, log and metrics follow it."""
    file = tmp_path / "my-mappings" / "acme.yaml"
    file.parent.mkdir()
    file.write_text(ACME)
    rules = {"providers": ["acme", "mailgun"], "directories": ["my-mappings"], "when_absent": "provider"}
    with site(tmp_path, rules=rules) as here:
        with here.client() as client:
            assert client.data(MESSAGE) == "250 2.0.0 queued as PLATFORM1"
            assert here.content() == (
                b"From: app@example.com\r\n"
                b"X-Acme-Trace: 4711\r\n"
                b"X-Cmail-GroupName: =?utf-8?b?R3LDvMOfZQ==?=\r\n"
                b"X-Cmail-TrackOpens: true\r\n"
                b"X-Cmail-TrackClicks: false\r\n"
                b"Subject: hi\r\n"
                b"\r\n"
                b"body\r\n"
            )
            refused = client.data(b'X-Acme-Options: {"mailmerge": [1]}\r\n\r\nbody\r\n.\r\n')
            assert refused == (
                "554 5.6.0 No counterpart here for X-Acme-Options mailmerge (lost: place-holders stay); not sent"
            )
        line = here.proxy.event("message")
        assert line["providers"] == ["acme"]
        assert line["group"] == "Grüße"
        assert line["set"] == [
            {
                "field": "X-Cmail-GroupName",
                "value": "Grüße",
                "source": "X-Acme-Lable",
                "rule": f"{file}:{line_with(file, 'X-Acme-Label')}",
            },
            {
                "field": "X-Cmail-TrackOpens",
                "value": "true",
                "source": "X-Acme-Options watch.opens",
                "rule": f"{file}:{line_with(file, 'watch.opens')}",
            },
            {"field": "X-Cmail-TrackClicks", "value": "false", "source": "when_absent", "rule": "when_absent"},
        ]
        assert line["lost"] == [
            {"source": "X-Acme-Footer", "class": "content", "action": "warn", "loses": "footer"},
        ]
        metric = here.proxy.metric
        assert metric("cmail_proxy_translated_total", provider="acme", target="X-Cmail-GroupName") == 1
        lost = {"provider": "acme", "class": "text", "action": "refuse"}
        assert metric("cmail_proxy_untranslatable_total", field="X-Acme-Options mailmerge", **lost) == 1
        assert len(here.upstream.taken) == 1


def test_file_of_ones_own_replaces_the_one_that_is_shipped(tmp_path: Path) -> None:
    """Of files of one name the one in the folder counts, as a whole: rules that only ours has are not in force."""
    file = tmp_path / "my-mappings" / "mailgun.yaml"
    file.parent.mkdir()
    file.write_text(
        "title: Mailgun, our way\n"
        "fields: [X-Mailgun-Tag]\n"
        "translate:\n"
        "  - {field: X-Mailgun-Tag, to: X-Cmail-GroupName, skip_prefix: internal-}\n"
    )
    with site(tmp_path, rules={"directories": ["my-mappings"]}) as here:
        with here.client() as client:
            client.data(
                b"X-Mailgun-Tag: internal-1\r\nX-Mailgun-Tag: orders\r\nX-Mailgun-Track: no\r\n"
                b"X-PM-TrackOpens: true\r\n"
                b"\r\nbody\r\n.\r\n"
            )
        fields = here.header().split(b"\r\n")
        assert b"X-Cmail-GroupName: orders" in fields
        assert b"X-Mailgun-Track: no" in fields  # no longer a field of the provider
        assert b"X-Cmail-TrackOpens: true" in fields  # the other files are as they were
        assert {each["rule"] for each in here.proxy.event("message")["set"]} > {f"{file}:4"}


def test_first_folder_with_a_file_of_that_name_counts(tmp_path: Path) -> None:
    """Folders are looked through in the order of the settings."""
    for name, title in (("first", "One"), ("second", "Two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "acme.yaml").write_text(
            f"title: {title}\nfields: [X-Acme-*]\ntranslate: [{{field: X-Acme-{title}, to: X-Cmail-GroupName}}]\n"
        )
    rules = {"providers": ["acme"], "directories": ["second", "first"]}
    config = write_settings(tmp_path / "settings.yaml", {"rules": rules})
    done = run("translate", "--config", config, stdin=b"X-Acme-One: 1\nX-Acme-Two: 2\n\nbody\n")
    assert done.stdout == b"X-Cmail-GroupName: 2\n\nbody\n"
