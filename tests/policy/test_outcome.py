"""What replies and failures mean: a table of what hosts really say, and rules that hold for every reply."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.mail.reply import Reply, ReplyParser
from proxy.policy import outcome
from proxy.policy.outcome import Outcome, Result, Scope, Stage, is_hard_bounce, of_reply, settle

HOST = "mx.example.net"


def said(line: str) -> Reply:
    """A reply as it is written on the wire."""
    (reply,) = ReplyParser().feed(line.encode() + b"\r\n")
    return reply


CASES = [
    # stage, reply, outcome, scope, enhanced, next host, hard bounce
    ("dot", "250 2.0.0 Ok: queued as 4Wx", "delivered", "recipient", "2.0.0", False, False),
    ("dot", "250 OK id=1abc", "delivered", "recipient", "2.0.0", False, False),
    ("dot", "252 whatever", "delivered", "recipient", "2.0.0", False, False),
    ("banner", "421 4.3.2 too busy", "deferred", "host", "4.3.2", True, False),
    ("banner", "450 not now", "deferred", "host", "4.3.2", True, False),
    ("banner", "521 mail.example does not accept mail", "failed", "host", "5.3.2", True, False),
    ("banner", "554 5.7.1 Service unavailable; Client host blocked", "deferred", "host", "4.7.1", True, False),
    ("banner", "554-bad reputation", "deferred", "host", "4.3.2", True, False),
    ("banner", "250 hello", "deferred", "host", "4.3.2", True, False),
    ("ehlo", "550 5.7.1 HELO name rejected", "deferred", "host", "4.7.1", True, False),
    ("ehlo", "450 4.7.1 Helo command rejected", "deferred", "host", "4.7.1", True, False),
    ("ehlo", "421 closing", "deferred", "host", "4.3.2", True, False),
    ("starttls", "454 4.7.0 TLS not available", "deferred", "host", "4.7.0", True, False),
    ("starttls", "502 what", "deferred", "host", "4.7.4", True, False),
    ("auth", "535 5.7.8 Authentication credentials invalid", "deferred", "host", "4.7.8", True, False),
    ("auth", "454 4.7.0 later", "deferred", "host", "4.7.0", True, False),
    ("mail", "421 4.7.0 Try again later, closing connection.", "deferred", "host", "4.7.0", True, False),
    ("mail", "451 4.7.1 Greylisting in action", "deferred", "message", "4.7.1", True, False),
    ("mail", "452 4.3.1 Insufficient system storage", "deferred", "message", "4.3.1", True, False),
    ("mail", "452 disk", "deferred", "message", "4.3.1", True, False),
    ("mail", "530 5.7.0 Must issue a STARTTLS command first", "deferred", "host", "4.7.0", True, False),
    ("mail", "530 Authentication required", "deferred", "host", "4.7.0", True, False),
    ("mail", "550 5.1.8 Sender domain not found", "failed", "message", "5.1.8", False, False),
    ("mail", "550 5.1.1 what about the sender", "failed", "message", "5.1.1", False, False),
    ("mail", "550 no", "failed", "message", "5.1.0", False, False),
    ("mail", "553 no", "failed", "message", "5.1.7", False, False),
    ("mail", "552 5.3.4 too big", "failed", "message", "5.3.4", False, False),
    ("mail", "552 too big", "failed", "message", "5.3.4", False, False),
    ("mail", "354 what", "deferred", "host", "4.5.0", True, False),
    ("rcpt", "450 4.2.0 Greylisted", "deferred", "recipient", "4.2.0", True, False),
    ("rcpt", "450 mailbox busy", "deferred", "recipient", "4.2.0", True, False),
    ("rcpt", "451 4.7.1 later", "deferred", "recipient", "4.7.1", True, False),
    ("rcpt", "452 4.2.2 Mailbox full", "deferred", "recipient", "4.2.2", False, False),
    ("rcpt", "552 5.2.2 user is over quota", "deferred", "recipient", "4.2.2", False, False),
    ("rcpt", "550 5.2.2 over quota", "deferred", "recipient", "4.2.2", False, False),
    ("rcpt", "552 exceeded storage allocation", "deferred", "recipient", "4.2.2", False, False),
    ("rcpt", "452 4.5.3 Too many recipients", "deferred", "recipient", "4.5.3", False, False),
    ("rcpt", "452 too many recipients", "deferred", "recipient", "4.5.3", False, False),
    ("rcpt", "552 Too many recipients", "deferred", "recipient", "4.5.3", False, False),
    ("rcpt", "550 5.1.1 User unknown", "failed", "recipient", "5.1.1", False, True),
    ("rcpt", "553 5.1.1 no such user", "failed", "recipient", "5.1.1", False, True),
    ("rcpt", "550 5.1.2 bad domain", "failed", "recipient", "5.1.2", False, True),
    ("rcpt", "551 5.1.6 mailbox has moved", "failed", "recipient", "5.1.6", False, True),
    ("rcpt", "556 5.1.10 null MX", "failed", "recipient", "5.1.10", False, True),
    ("rcpt", "550 No such user here", "failed", "recipient", "5.2.0", False, False),
    ("rcpt", "551 User not local", "failed", "recipient", "5.1.6", False, False),
    ("rcpt", "550 5.4.1 Recipient address rejected: Access denied", "failed", "recipient", "5.4.1", False, False),
    ("rcpt", "550 5.2.1 disabled", "failed", "recipient", "5.2.1", False, False),
    ("rcpt", "554 5.7.1 Relay access denied", "failed", "recipient", "5.7.1", False, False),
    ("rcpt", "550 5.7.1 blocked using zen.spamhaus.org", "failed", "recipient", "5.7.1", False, False),
    ("rcpt", "501 5.1.3 Bad recipient address syntax", "failed", "recipient", "5.1.3", False, False),
    ("rcpt", "553 5.1.8 sender", "failed", "recipient", "5.1.8", False, False),
    ("rcpt", "450 5.1.1 codes that disagree", "deferred", "recipient", "4.2.0", True, False),
    ("rcpt", "550 4.1.1 codes that disagree", "failed", "recipient", "5.2.0", False, False),
    ("rcpt", "421 4.4.2 timeout exceeded", "deferred", "host", "4.4.2", True, False),
    ("rcpt", "354 what", "deferred", "host", "4.5.0", True, False),
    ("data", "451 4.3.0 queue file write error", "deferred", "message", "4.3.0", True, False),
    ("data", "554 5.5.1 no valid recipients", "failed", "message", "5.5.1", False, False),
    ("data", "503 order", "failed", "message", "5.5.1", False, False),
    ("data", "250 what", "deferred", "host", "4.5.0", True, False),
    ("data", "421 bye", "deferred", "host", "4.3.2", True, False),
    ("dot", "354 what", "deferred", "message", "4.5.0", False, False),
    ("dot", "421-4.7.0 suspicious", "deferred", "message", "4.7.0", True, False),
    ("dot", "451 4.7.1 later", "deferred", "message", "4.7.1", True, False),
    ("dot", "452 4.2.2 full", "deferred", "message", "4.2.2", True, False),
    ("dot", "554 5.7.1 Spam message rejected", "failed", "message", "5.7.1", False, False),
    ("dot", "550 5.1.1 of two recipients", "failed", "message", "5.1.1", False, False),
    ("dot", "550 content", "failed", "message", "5.6.0", False, False),
    ("dot", "552 size", "failed", "message", "5.3.4", False, False),
    ("dot", "535 who are you", "deferred", "host", "4.7.0", True, False),
]


@pytest.mark.parametrize(("stage", "line", "expected", "scope", "enhanced", "next_host", "hard"), CASES)
def test_reply_is_sorted(
    stage: str, line: str, expected: str, scope: str, enhanced: str, next_host: bool, hard: bool
) -> None:
    """Each reply has one meaning, and its words go along."""
    reply = said(line.replace("-", " ", 1) if line[3] == "-" else line)
    result = of_reply(Stage(stage), reply, HOST, tls=True, recipients=2)
    assert (result.outcome, result.scope, result.enhanced, result.next_host) == (expected, scope, enhanced, next_host)
    assert is_hard_bounce(result) is hard
    assert (result.reply, result.host, result.tls, result.stage) == (reply, HOST, True, stage)
    assert str(reply) in result.detail


@pytest.mark.parametrize(
    ("line", "expected", "scope", "enhanced", "hard"),
    [
        ("550 5.1.1 mailbox unavailable", "failed", "recipient", "5.1.1", True),
        ("552 5.2.2 quota", "deferred", "recipient", "4.2.2", False),
        ("554 5.7.1 spam", "failed", "message", "5.7.1", False),
        ("550 5.2.1 disabled", "failed", "recipient", "5.2.1", False),
        ("250 2.1.5 fine", "delivered", "recipient", "2.1.5", False),
    ],
)
def test_reply_to_the_dot_with_one_recipient_can_be_about_it(
    line: str, expected: str, scope: str, enhanced: str, hard: bool
) -> None:
    """Hosts that look at the mailbox only behind the dot are understood where there is no doubt whom they mean."""
    result = of_reply(Stage.DOT, said(line), HOST, recipients=1)
    assert (result.outcome, result.scope, result.enhanced) == (expected, scope, enhanced)
    assert is_hard_bounce(result) is hard


@pytest.mark.parametrize("stage", ["dns", "connect", "store", "held"])
def test_stage_without_a_dialogue_has_no_reply(stage: str) -> None:
    """Whoever asks has made a mistake."""
    with pytest.raises(ValueError, match="no outcome"):
        of_reply(Stage(stage), said("250 fine"), HOST)


def test_the_reply_that_asks_for_the_message_is_no_outcome() -> None:
    """354 to DATA."""
    with pytest.raises(ValueError, match="no outcome"):
        of_reply(Stage.DATA, said("354 go ahead"), HOST)


FAILURES = [
    (outcome.unreachable(HOST, "refused"), "deferred", "host", "4.4.1", True, False),
    (outcome.lost(Stage.RCPT, HOST, "reset"), "deferred", "host", "4.4.2", True, False),
    (outcome.may_have_been_taken(HOST, "reset"), "deferred", "message", "4.4.2", False, False),
    (outcome.null_mx("x.example"), "failed", "recipient", "5.1.10", False, True),
    (outcome.no_such_domain("x.invalid"), "failed", "recipient", "5.1.2", False, True),
    (outcome.bad_domain("ü\n"), "failed", "recipient", "5.1.2", False, True),
    (outcome.bad_sender("\udcff@example.net"), "failed", "message", "5.1.7", False, False),
    (outcome.no_address("x.example"), "failed", "host", "5.4.4", False, False),
    (outcome.dns_trouble("x.example", "SERVFAIL"), "deferred", "host", "4.4.3", False, False),
    (outcome.loop("x.example", "us.example"), "failed", "host", "5.4.6", False, False),
    (outcome.prohibited("x.example", "127.0.0.1"), "failed", "host", "5.4.4", False, False),
    (outcome.tls_not_offered(HOST), "deferred", "host", "4.7.4", True, False),
    (outcome.tls_failed(HOST, "expired"), "deferred", "host", "4.7.5", True, False),
    (outcome.no_auth(HOST, "none offered"), "deferred", "host", "4.7.4", True, False),
    (outcome.too_large(HOST, 2, 1), "failed", "message", "5.3.4", False, False),
    (outcome.no_smtputf8(HOST), "failed", "message", "5.6.7", True, False),
    (outcome.no_eight_bit(HOST), "failed", "message", "5.6.3", True, False),
    (outcome.stored("new/1"), "delivered", "recipient", "2.0.0", False, False),
    (outcome.disk_full("/mail"), "deferred", "host", "4.3.1", False, False),
    (outcome.not_stored("/mail"), "deferred", "host", "4.3.0", False, False),
    (outcome.held(None, "busy"), "deferred", "host", "4.3.2", False, False),
    (outcome.held(outcome.unreachable(HOST, "refused"), "paused"), "deferred", "host", "4.4.1", False, False),
]


@pytest.mark.parametrize(("result", "expected", "scope", "enhanced", "next_host", "hard"), FAILURES)
def test_failure_without_a_reply_is_sorted(
    result: Result, expected: str, scope: str, enhanced: str, next_host: bool, hard: bool
) -> None:
    """Each has one meaning, a status of its own and words that are printable ASCII."""
    assert (result.outcome, result.scope, result.enhanced, result.next_host) == (expected, scope, enhanced, next_host)
    assert is_hard_bounce(result) is hard
    assert result.detail.isascii()
    assert result.detail.isprintable()
    assert result.attempted is (result.stage is not Stage.HELD)


def made(code: int, detail: str, text: str) -> Reply:
    """A reply whose codes agree."""
    return Reply(code, f"{code // 100}.{detail}" if detail and code // 100 != 3 else "", text)


REPLIES = st.builds(
    made,
    st.integers(200, 599),
    st.sampled_from(["", "0.0", "1.1", "1.10", "2.2", "4.2", "5.3", "7.1", "999.999"]),
    st.sampled_from(["", "fine", "too many recipients"]),
)
STAGES = [Stage.BANNER, Stage.EHLO, Stage.STARTTLS, Stage.AUTH, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT]


@given(st.sampled_from(STAGES), REPLIES, st.integers(1, 100))
def test_every_reply_has_a_meaning(stage: Stage, reply: Reply, recipients: int) -> None:
    """No reply is left unsorted; classes agree; only 2yz to the dot delivers; only a 5yz fails."""
    if stage is Stage.DATA and reply.code == 354:
        return
    result = of_reply(stage, reply, HOST, recipients=recipients)
    assert result.enhanced[0] == {"delivered": "2", "deferred": "4", "failed": "5"}[result.outcome]
    if result.outcome is Outcome.DELIVERED:
        assert reply.positive
        assert stage in (Stage.DOT, Stage.MAIL, Stage.RCPT)
    if result.outcome is Outcome.FAILED:
        assert reply.permanent
        assert result.scope is not Scope.HOST or reply.code == 521
    if stage in (Stage.BANNER, Stage.EHLO, Stage.STARTTLS, Stage.AUTH):
        assert result.scope is Scope.HOST
        assert result.next_host
    if is_hard_bounce(result):
        assert reply.enhanced in ("5.1.1", "5.1.10")
        assert stage is Stage.RCPT or recipients == 1


def test_words_of_a_host_are_bounded() -> None:
    """A reply may have 100 lines; a result is kept for each recipient, for days."""
    result = of_reply(Stage.RCPT, Reply(550, "5.1.1", "x" * 40_000), HOST)
    assert result.reply is not None
    assert len(result.reply.text) < 1100
    assert len(result.detail) < 1200


def test_result_whose_classes_disagree_cannot_be_made() -> None:
    """4 and 5 never disagree."""
    with pytest.raises(ValueError, match="does not fit"):
        Result(Outcome.DEFERRED, Scope.HOST, Stage.CONNECT, None, "5.4.1", "no")
    with pytest.raises(ValueError, match="does not fit"):
        Result(Outcome.DELIVERED, Scope.HOST, Stage.CONNECT, None, "", "no")


GREY = of_reply(Stage.RCPT, said("450 4.2.0 greylisted"), HOST)
UNKNOWN = of_reply(Stage.RCPT, said("550 5.1.1 unknown"), HOST)
TAKEN = of_reply(Stage.DOT, said("250 2.0.0 ok"), HOST)
NEVER = of_reply(Stage.BANNER, said("521 no mail"), HOST)
DOWN = outcome.unreachable(HOST, "refused")
LOOP = outcome.loop("x.example", HOST)


@pytest.mark.parametrize(
    ("earlier", "later", "settled"),
    [
        (None, DOWN, DOWN),
        (DOWN, TAKEN, TAKEN),
        (GREY, TAKEN, TAKEN),
        (GREY, DOWN, GREY),
        (GREY, UNKNOWN, UNKNOWN),
        (DOWN, UNKNOWN, UNKNOWN),
        (DOWN, GREY, GREY),
        (DOWN, NEVER, DOWN),
        (NEVER, DOWN, DOWN),
        (NEVER, NEVER, NEVER),
        (DOWN, LOOP, LOOP),
        (UNKNOWN, DOWN, UNKNOWN),
    ],
)
def test_two_hosts_settle(earlier: Result | None, later: Result, settled: Result) -> None:
    """What is known of a recipient outweighs the state of a host, and a domain fails only when all its hosts have."""
    assert settle(earlier, later) is settled


def test_expiry_keeps_the_last_words_and_the_class() -> None:
    """The DSN shows what was wrong all the time; its status says that time was up."""
    result = outcome.expired(GREY)
    assert (result.outcome, result.enhanced, result.reply) == ("failed", "4.4.7", GREY.reply)
    assert "greylisted" in result.detail
    assert not is_hard_bounce(result)
    assert outcome.expired(None).enhanced == "4.4.7"


def test_expiry_of_what_is_about_the_address_is_no_hard_bounce() -> None:
    """However long a mailbox was full."""
    assert not is_hard_bounce(outcome.expired(of_reply(Stage.RCPT, said("452 4.2.2 full"), HOST)))
