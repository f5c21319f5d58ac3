"""``translate``: one message in, the message as it would be sent on out, or why each field was set."""

import random
import re
from pathlib import Path

import pytest

from tests.operation.program import ROOT, rule_at, run, write_settings

FIXTURES = ROOT / "fixtures"
MESSAGE = b"From: a@example.com\nTo: b@example.net\nX-Mailgun-Tag: welcome\nSubject: hi\n\nbody\n"
TRANSLATED = b"From: a@example.com\nTo: b@example.net\nX-Cmail-GroupName: welcome\nSubject: hi\n\nbody\n"
REFUSED = b'From: a@example.com\nTo: b@example.net\nX-SMTPAPI: {"category": "c", "sub": {"-n-": ["Ann"]}}\n\n-n-\n'


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("source", ["nothing", "-", "a file"])
def test_message_keeps_the_line_ends_it_came_with(tmp_path: Path, source: str, line_end: bytes) -> None:
    """A file and standard input do the same; LF stays LF, CRLF stays CRLF, in header section and body."""
    message = MESSAGE.replace(b"\n", line_end)
    file = tmp_path / "message.eml"
    file.write_bytes(message)
    given: dict[str, list[str | Path]] = {"nothing": [], "-": ["-"], "a file": [file]}
    arguments = given[source]
    done = run("translate", *arguments, stdin=b"" if source == "a file" else message)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == TRANSLATED.replace(b"\n", line_end)


def test_translating_twice_equals_once() -> None:
    """A translated message holds nothing more to translate."""
    once = run("translate", stdin=(FIXTURES / "sendgrid" / "06-folded.eml").read_bytes()).stdout
    assert b"X-Cmail-GroupName" in once
    assert run("translate", stdin=once).stdout == once


@pytest.mark.parametrize("provider", ["mailgun", "mailjet", "mandrill", "postmark", "sendgrid"])
def test_explain_names_the_rule_that_set_each_field(provider: str) -> None:
    """For each field set, --explain names rule file and line, and the rule for it really stands there."""
    tracking = FIXTURES / provider / "05-tracking-off.eml"
    group = FIXTURES / provider / "03-groups.eml"
    seen = set()
    for file in (tracking, group):
        done = run("translate", "--explain", file)
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode()
        assert text.count("set        ") == text.count("           from ")
        pattern = r"^set        (X-Cmail-\w+): .+\n           from ([\w-]+) ?(\S*), (\S+)$"
        for target, field, path, where in re.findall(pattern, text, re.MULTILINE):
            assert where.startswith(f"mappings/{provider}.yaml:")
            rule = rule_at(where)
            assert re.search(rf"field: .*\b{field}\b", rule)
            assert re.search(rf"to: {target}\b", rule)
            assert path in rule
            seen.add(target)
    assert "X-Cmail-GroupName" in seen
    assert len(seen) > 1


def test_explain_tells_what_is_lost_and_where_the_rule_says_so() -> None:
    """A loss is named with its class, its consequence and its rule; the decision comes last."""
    done = run("translate", "--explain", stdin=REFUSED)
    assert (done.returncode, done.stderr) == (1, b"")
    *_, lost, where, group, decision = done.stdout.decode().splitlines()
    assert lost == "lost       X-SMTPAPI sub: place-holders stay (class text: message refused)"
    assert where.strip().startswith("mappings/sendgrid.yaml:")
    assert re.search(r"at: sub, .*class: text, loses: place-holders stay", rule_at(where.strip()))
    assert group == "group      c"
    assert decision == (
        "decision   refused with 554 5.6.0: No counterpart here for X-SMTPAPI sub (lost: place-holders stay)"
    )


def test_message_that_would_be_refused_is_shown_with_exit_code_1() -> None:
    """The translated message is still written, the refusal goes to standard error in the words the app would get."""
    done = run("translate", stdin=REFUSED)
    assert done.returncode == 1
    assert done.stdout == b"From: a@example.com\nTo: b@example.net\nX-Cmail-GroupName: c\n\n-n-\n"
    assert done.stderr.decode() == (
        "refused with 554 5.6.0: No counterpart here for X-SMTPAPI sub (lost: place-holders stay)\n"
    )


def test_message_in_test_mode_is_explained_as_discarded() -> None:
    """A message that the old provider would not have delivered is no problem, and --explain tells what would happen."""
    message = b"From: a@example.com\nX-Mailgun-Drop-Message: yes\n\nbody\n"
    done = run("translate", "--explain", stdin=message)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines()[-1].startswith("decision   discarded, answered with 250: ")


@pytest.mark.parametrize(
    ("recipients", "code", "reason"),
    [
        ([], 1, "No counterpart here for X-SMTPAPI to (lost: the real recipients)"),
        (["ann@example.net"], 0, ""),
        (
            ["ann@example.net", "bob@example.net"],
            1,
            "No counterpart here for X-SMTPAPI to (lost: the real recipients)",
        ),
    ],
    ids=["of To", "the one named", "one more"],
)
def test_recipients_of_the_envelope_decide(recipients: list[str], code: int, reason: str) -> None:
    """--recipient stands for RCPT, may be repeated, and replaces what To, Cc and Bcc say."""
    message = b'From: a@example.com\nTo: dummy@example.com\nX-SMTPAPI: {"to": ["ann@example.net"]}\n\nbody\n'
    options = [word for each in recipients for word in ("--recipient", each)]
    done = run("translate", *options, stdin=message)
    assert done.returncode == code
    assert done.stderr.decode() == (f"refused with 554 5.6.0: {reason}\n" if reason else "")


@pytest.mark.parametrize(("provider", "group"), [("", b"first"), ("mailgun", b"first"), ("postmark", b"second")])
def test_provider_of_login_or_listener_comes_first(provider: str, group: bytes) -> None:
    """Of the fields of two providers those of --provider count, else those that stand first."""
    message = b"From: a@example.com\nX-Mailgun-Tag: first\nX-PM-Tag: second\n\nbody\n"
    done = run("translate", *(["--provider", provider] if provider else []), stdin=message)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"From: a@example.com\nX-Cmail-GroupName: " + group + b"\n\nbody\n"


def test_unknown_provider_is_wrong_usage() -> None:
    """A provider without active rules is told, with those there are."""
    done = run("translate", "--provider", "mailgum", stdin=MESSAGE)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines()[-1] == (
        "Error: --provider: found 'mailgum'; expected one of mailgun, mailjet, mandrill, postmark, sendgrid"
    )


def test_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    """A message file that cannot be read is told in one line."""
    done = run("translate", tmp_path / "none.eml")
    assert (done.returncode, done.stdout) == (2, b"")
    error = done.stderr.decode().splitlines()[-1]
    assert error == f"Error: Invalid value for '[FILE|-]': '{tmp_path}/none.eml': No such file or directory"


def test_rules_of_the_settings_are_in_force(tmp_path: Path) -> None:
    """--config decides as it does for the running proxy: here nothing is refused, and fields stay."""
    config = write_settings(tmp_path / "settings.yaml", {"rules": {"untranslatable": "warn", "strip": "none"}})
    done = run("translate", "--config", config, stdin=REFUSED)
    assert (done.returncode, done.stderr) == (0, b"")
    fields = REFUSED.partition(b"\n\n")[0].split(b"\n")
    assert sorted(done.stdout.partition(b"\n\n")[0].split(b"\n")) == sorted([*fields, b"X-Cmail-GroupName: c"])


def test_broken_rules_are_told_and_nothing_is_translated(tmp_path: Path) -> None:
    """A rule file with a problem ends the command as it would end the start of the proxy."""
    (tmp_path / "acme.yaml").write_text("title: Acme\nfields: [X-Acme-*]\ntranslate: soon\n")
    config = write_settings(
        tmp_path / "settings.yaml", {"rules": {"providers": ["acme"], "directories": [str(tmp_path)]}}
    )
    done = run("translate", "--config", config, stdin=MESSAGE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {tmp_path}/acme.yaml:3: translate: found 'soon'; expected a list of rules",
        "cmail-proxy: 1 problem",
    ]


@pytest.mark.parametrize(
    ("message", "what"), [(b"", "there is nothing"), (b"Hello\n", "this does not begin with a header section")]
)
def test_file_that_is_no_message_is_remarked_on(message: bytes, what: str) -> None:
    """Who names the wrong file is not left with "passed on" alone."""
    done = run("translate", "--explain", stdin=message)
    assert f"remark     no_header: {what}, so no field was looked at" in done.stdout.decode().splitlines()


BROKEN = {
    "nothing": b"",
    "random octets": random.Random(20261123).randbytes(20_000),  # noqa: S311 - the same on every run
    "line ends only": b"\r\r\n\n\r\n\r\r",
    "no header section": b"\nX-Mailgun-Tag: in the body\n",
    "no end of the header section": b"X-Mailgun-Tag: a\nX-SMTPAPI: {",
    "controls": b"X-Mailgun-Tag: a\0b\x1b[31m\x7f\nX-SMTPAPI: \xff\xfe\n\nbody\0\xff\n",
    "deep JSON": b"X-SMTPAPI: " + b'{"category":' * 10_000 + b"\n\nbody\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_message_is_translated_as_far_as_it_goes(kind: str) -> None:
    """Whatever comes in, the command ends in order: the body is kept, and no error but a refusal is told."""
    message = BROKEN[kind]
    done = run("translate", stdin=message)
    assert (done.returncode, done.stderr) == (0, b"")
    body = message.partition(b"\n\n")[2]
    if kind != "line ends only":  # which are mended, since none of them means the same to every server
        assert done.stdout.endswith(body)
    if kind in ("nothing", "random octets", "no header section"):
        assert done.stdout == re.sub(rb"\r(?!\n)", b" ", message)
    else:
        assert b"\0b" not in done.stdout
