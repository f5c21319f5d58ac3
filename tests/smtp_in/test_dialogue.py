"""What each verb is answered, in order and out of order, one by one and in a pipeline."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.smtp_in.dialogue import ENHANCED, GREETING, QUEUED, START_MAIL, TOO_MANY_ERRORS, Client
from tests.smtp_in.site import MESSAGE, Site, site
from tests.support.upstream import EXTENSIONS, Upstream

OK = "250 2.0.0 OK"
MAIL_OK = "250 2.1.0 OK"
RCPT_OK = "250 2.1.5 recipient fine"
NO_ARGUMENT = "501 5.5.4 This command takes no argument"
UNKNOWN = "500 5.5.1 Command not recognized"
MAIL_SYNTAX = "501 5.5.4 Syntax: MAIL FROM:<address> [parameters]; the address in angle brackets"
RCPT_SYNTAX = "501 5.5.4 Syntax: RCPT TO:<address>; the address in angle brackets"
BAD_SENDER = "553 5.1.7 This is no address a message can come from"
BAD_RECIPIENT = "553 5.1.3 This is no address a message can go to"
BAD_PARAMETER = "501 5.5.4 A parameter is malformed"
UNKNOWN_PARAMETER = "555 5.5.4 A parameter is not known here"
EHLO_FIRST = "503 5.5.1 Send EHLO first"
MAIL_FIRST = "503 5.5.1 Send MAIL first"
NESTED = "503 5.5.1 A transaction is open already; RSET ends it"
UTF8_NEEDED = "553 5.6.7 An address with characters outside ASCII needs MAIL with SMTPUTF8"
NO_RECIPIENTS = "554 5.5.1 No valid recipients"
HELP = "214 2.0.0 Commands: AUTH DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET STARTTLS VRFY"
HELLO_SYNTAX = "501 5.5.4 Syntax: EHLO hostname"
NO_UTF8 = "550 5.6.7 SMTPUTF8 is not offered here"

NEW: tuple[str, ...] = ()
GREETED = ("EHLO app.example.com",)
OPEN = (*GREETED, "MAIL FROM:<app@example.com>")
ADDRESSED = (*OPEN, "RCPT TO:<ann@example.net>")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy that all tests of this module may use."""
    with site(tmp_path_factory.mktemp("dialogue"), limits={"message_octets": 100_000}) as started:
        yield started


@pytest.fixture
def here(shared: Site) -> Site:
    """The shared proxy, with nothing received."""
    shared.forget()
    return shared


@pytest.fixture(scope="module")
def international(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy before a platform that takes SMTPUTF8."""
    upstream = Upstream(extensions=(*EXTENSIONS, "SMTPUTF8"))
    with site(tmp_path_factory.mktemp("utf8"), upstream) as started:
        offered: list[str] = []
        until = time.monotonic() + 10
        while "SMTPUTF8" not in offered and time.monotonic() < until:
            with started.client(extended=False) as client:
                offered = client.ehlo()
        assert "SMTPUTF8" in offered
        yield started


def test_greeting_and_hello_say_who_we_are_and_what_is_offered(here: Site) -> None:
    """Greeting, HELO and EHLO name the host and carry no enhanced status code; EHLO lists what can be kept."""
    with here.client(greeted=False) as client:
        assert client.reply() == GREETING
        assert client.say("HELO app.example.com") == "250 proxy.example.com"
        assert client.say("EHLO app.example.com").split("\n") == [
            "250-proxy.example.com",
            "250-SIZE 100000",
            "250-8BITMIME",
            "250-PIPELINING",
            "250 ENHANCEDSTATUSCODES",
        ]


@pytest.mark.parametrize(
    ("before", "command", "expected"),
    [
        pytest.param(NEW, "NOOP", OK, id="noop-first"),
        pytest.param(NEW, "RSET", OK, id="rset-first"),
        pytest.param(NEW, "QUIT", "221 2.0.0 Bye", id="quit-first"),
        pytest.param(NEW, "HELP", HELP, id="help-first"),
        pytest.param(NEW, "VRFY ann", "252 2.5.0 Cannot verify, send the message and see", id="vrfy-first"),
        pytest.param(NEW, "MAIL FROM:<a@example.com>", EHLO_FIRST, id="mail-before-hello"),
        pytest.param(NEW, "RCPT TO:<a@example.com>", MAIL_FIRST, id="rcpt-before-hello"),
        pytest.param(NEW, "DATA", MAIL_FIRST, id="data-before-hello"),
        pytest.param(NEW, "AUTH PLAIN", EHLO_FIRST, id="auth-before-hello"),
        pytest.param(("HELO app",), "AUTH PLAIN", EHLO_FIRST, id="auth-after-helo"),
        pytest.param(("HELO app",), "MAIL FROM:<a@example.com>", MAIL_OK, id="mail-after-helo"),
        pytest.param(NEW, "EHLO", HELLO_SYNTAX, id="ehlo-without-name"),
        pytest.param(NEW, "HELO", HELLO_SYNTAX, id="helo-without-name"),
        pytest.param(NEW, "EHLO two words", HELLO_SYNTAX, id="ehlo-with-blank"),
        pytest.param(NEW, "EHLO " + "x" * 256, HELLO_SYNTAX, id="ehlo-too-long"),
        pytest.param(NEW, "EHLO ünïcode", HELLO_SYNTAX, id="ehlo-not-ascii"),
        pytest.param(GREETED, "STARTTLS", "502 5.5.1 STARTTLS is not offered here", id="starttls-not-offered"),
        pytest.param(GREETED, "STARTTLS now", NO_ARGUMENT, id="starttls-with-argument"),
        pytest.param(GREETED, "AUTH PLAIN", "503 5.5.1 AUTH is not offered here", id="auth-not-offered"),
        pytest.param(GREETED, "NOOP anything at all", OK, id="noop-with-argument"),
        pytest.param(GREETED, "noop", OK, id="lower-case"),
        pytest.param(GREETED, "RSET", OK, id="rset"),
        pytest.param(GREETED, "RSET now", NO_ARGUMENT, id="rset-with-argument"),
        pytest.param(GREETED, "QUIT now", NO_ARGUMENT, id="quit-with-argument"),
        pytest.param(GREETED, "HELP", HELP, id="help"),
        pytest.param(GREETED, "HELP RCPT", "214 2.0.0 Syntax: RCPT TO: <address>", id="help-of-a-command"),
        pytest.param(GREETED, "HELP me", HELP, id="help-of-nothing"),
        pytest.param(GREETED, "EXPN list", UNKNOWN, id="expn"),
        pytest.param(GREETED, "TURN", UNKNOWN, id="unknown"),
        pytest.param(GREETED, "", UNKNOWN, id="empty-line"),
        pytest.param(GREETED, " NOOP", UNKNOWN, id="leading-blank"),
        pytest.param(GREETED, "BDAT 5 LAST", UNKNOWN, id="bdat-which-is-not-offered"),
        pytest.param(GREETED, "GET / HTTP/1.1", UNKNOWN, id="http"),
        pytest.param(GREETED, "RCPT TO:<ann@example.net>", MAIL_FIRST, id="rcpt-before-mail"),
        pytest.param(GREETED, "DATA", MAIL_FIRST, id="data-before-mail"),
        pytest.param(OPEN, "MAIL FROM:<b@example.com>", NESTED, id="mail-twice"),
        pytest.param(OPEN, "DATA", NO_RECIPIENTS, id="data-without-recipients"),
        pytest.param(OPEN, "DATA now", NO_ARGUMENT, id="data-with-argument"),
        pytest.param(OPEN, "RCPT TO:<ann@example.net>", RCPT_OK, id="rcpt-answered-by-the-platform"),
        pytest.param(ADDRESSED, "DATA", START_MAIL, id="data"),
        pytest.param(ADDRESSED, "RSET", OK, id="rset-in-transaction"),
        pytest.param((*ADDRESSED, "RSET"), "DATA", MAIL_FIRST, id="data-after-rset"),
        pytest.param((*ADDRESSED, "EHLO again"), "DATA", MAIL_FIRST, id="data-after-second-ehlo"),
        pytest.param(GREETED, "NOOP " + "x" * 1100, "500 5.5.2 Command line too long", id="line-too-long"),
        pytest.param(GREETED, "NOOP " + "x" * 900, OK, id="line-long"),
    ],
)
def test_command_in_its_place_or_not_gets_its_reply(
    here: Site, before: tuple[str, ...], command: str, expected: str
) -> None:
    """Every verb, in every state that matters, is answered with these words and an enhanced status code."""
    with here.client(extended=False) as client:
        for line in before:
            assert client.say(line).startswith("250"), line
        reply = client.say(command)
        assert reply == expected
        if reply != START_MAIL:
            assert ENHANCED.match(reply)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        pytest.param("FROM:<a@example.com>", MAIL_OK, id="plain"),
        pytest.param("from:<a@example.com>", MAIL_OK, id="lower-case"),
        pytest.param("FROM: <a@example.com>", MAIL_OK, id="blank-before-bracket"),
        pytest.param("FROM:<>", MAIL_OK, id="null-reverse-path"),
        pytest.param("FROM:<a@example.com> ", MAIL_OK, id="trailing-blank"),
        pytest.param("FROM:a@example.com", MAIL_SYNTAX, id="no-brackets"),
        pytest.param("FROM:", MAIL_SYNTAX, id="nothing"),
        pytest.param("", MAIL_SYNTAX, id="no-argument"),
        pytest.param("TO:<a@example.com>", MAIL_SYNTAX, id="wrong-word"),
        pytest.param("FROM:<a@example.com", BAD_SENDER, id="bracket-not-closed"),
        pytest.param("FROM:<a b@example.com>", BAD_SENDER, id="blank-in-local-part"),
        pytest.param("FROM:<a@b@example.com>", BAD_SENDER, id="two-at"),
        pytest.param("FROM:<a@example.com>SIZE=1", BAD_SENDER, id="no-blank-before-parameter"),
        pytest.param("FROM:<ä@example.com>", UTF8_NEEDED, id="utf8-without-smtputf8"),
        pytest.param("FROM:<a@example.com> SIZE=99999", MAIL_OK, id="size"),
        pytest.param("FROM:<a@example.com> size=5", MAIL_OK, id="size-in-lower-case"),
        pytest.param(
            "FROM:<a@example.com> SIZE=100001",
            "552 5.3.4 The message is larger than 100000 octets",
            id="size-over-the-limit",
        ),
        pytest.param("FROM:<a@example.com> SIZE=many", BAD_PARAMETER, id="size-no-number"),
        pytest.param("FROM:<a@example.com> SIZE=-1", BAD_PARAMETER, id="size-negative"),
        pytest.param("FROM:<a@example.com> SIZE=" + "9" * 21, BAD_PARAMETER, id="size-without-measure"),
        pytest.param("FROM:<a@example.com> SIZE=1 SIZE=1", BAD_PARAMETER, id="parameter-repeated"),
        pytest.param("FROM:<a@example.com> SIZE=1 size=2", BAD_PARAMETER, id="parameter-repeated-in-other-case"),
        pytest.param("FROM:<a@example.com> BODY=7BIT", MAIL_OK, id="seven-bit"),
        pytest.param("FROM:<a@example.com> BODY=8BITMIME", MAIL_OK, id="eight-bit"),
        pytest.param("FROM:<a@example.com> body=8bitmime", MAIL_OK, id="eight-bit-in-lower-case"),
        pytest.param("FROM:<a@example.com> BODY=BINARYMIME", BAD_PARAMETER, id="binary"),
        pytest.param("FROM:<a@example.com> SMTPUTF8", NO_UTF8, id="smtputf8-not-offered"),
        pytest.param("FROM:<a@example.com> SMTPUTF8=1", BAD_PARAMETER, id="smtputf8-with-value"),
        pytest.param("FROM:<a@example.com> AUTH=<>", MAIL_OK, id="auth-of-nobody"),
        pytest.param("FROM:<a@example.com> AUTH=b@example.com", MAIL_OK, id="auth-of-somebody"),
        pytest.param("FROM:<a@example.com> RET=HDRS", UNKNOWN_PARAMETER, id="dsn-not-offered"),
        pytest.param("FROM:<a@example.com> X-THING", UNKNOWN_PARAMETER, id="unknown"),
        pytest.param("FROM:<a@example.com> =5", BAD_PARAMETER, id="no-name"),
        pytest.param("FROM:<a@example.com> SIZE=1 BODY=8BITMIME AUTH=<>", MAIL_OK, id="several"),
    ],
)
def test_mail_with_address_and_parameters_is_taken_or_says_what_is_wrong(
    here: Site, argument: str, expected: str
) -> None:
    """MAIL takes what was offered, and names what it does not take with the reply code for it."""
    with here.client() as client:
        reply = client.say(f"MAIL {argument}")
        assert reply == expected
        assert ENHANCED.match(reply)


def test_mail_parameters_reach_the_platform_without_what_is_ours(here: Site) -> None:
    """SIZE and BODY go on; AUTH=, which is believed of nobody, does not."""
    with here.client() as client:
        assert client.say("MAIL FROM:<a@example.com> SIZE=200 BODY=8BITMIME AUTH=b@example.com") == MAIL_OK
        assert client.say("RCPT TO:<ann@example.net>") == RCPT_OK
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].mail == "MAIL FROM:<a@example.com> SIZE=200 BODY=8BITMIME"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        pytest.param("TO:<ann@example.net>", RCPT_OK, id="plain"),
        pytest.param("to: <ann@example.net>", RCPT_OK, id="lower-case-and-blank"),
        pytest.param("TO:<postmaster>", RCPT_OK, id="postmaster-without-domain"),
        pytest.param("TO:<ann@[192.0.2.1]>", RCPT_OK, id="address-literal"),
        pytest.param("TO:<>", BAD_RECIPIENT, id="null"),
        pytest.param("TO:ann@example.net", RCPT_SYNTAX, id="no-brackets"),
        pytest.param("", RCPT_SYNTAX, id="no-argument"),
        pytest.param("FROM:<ann@example.net>", RCPT_SYNTAX, id="wrong-word"),
        pytest.param("TO:<ann@example.net", BAD_RECIPIENT, id="bracket-not-closed"),
        pytest.param("TO:<ann@example.net>>", BAD_RECIPIENT, id="bracket-twice"),
        pytest.param("TO:<ann<bob@example.net>", BAD_RECIPIENT, id="bracket-inside"),
        pytest.param("TO:<ann@exa mple.net>", BAD_RECIPIENT, id="blank-in-domain"),
        pytest.param('TO:<"ann@example.net>', BAD_RECIPIENT, id="quote-not-closed"),
        pytest.param("TO:<" + "a" * 600 + "@example.net>", BAD_RECIPIENT, id="too-long"),
        pytest.param("TO:<änn@example.net>", UTF8_NEEDED, id="utf8-without-smtputf8"),
        pytest.param("TO:<ann@exämple.net>", UTF8_NEEDED, id="utf8-domain-without-smtputf8"),
        pytest.param("TO:<ann@example.net> NOTIFY=NEVER", UNKNOWN_PARAMETER, id="dsn-not-offered"),
        pytest.param("TO:<ann@example.net> ORCPT=rfc822;x", UNKNOWN_PARAMETER, id="orcpt-not-offered"),
    ],
)
def test_rcpt_with_address_is_asked_of_the_platform_or_says_what_is_wrong(
    here: Site, argument: str, expected: str
) -> None:
    """An address that is one goes to the platform; anything else is refused here, for its own reason."""
    with here.client() as client:
        client.say("MAIL FROM:<app@example.com>")
        reply = client.say(f"RCPT {argument}")
        assert reply == expected
        assert ENHANCED.match(reply)


@pytest.mark.parametrize(
    ("written", "passed_on"),
    [
        pytest.param("<@a.example,@b.example:ann@example.net>", "<ann@example.net>", id="source-route-left-out"),
        pytest.param('<"ann smith"@example.net>', '<"ann smith"@example.net>', id="quoted-local-part"),
        pytest.param(r'<"a\"b\\c"@example.net>', r'<"a\"b\\c"@example.net>', id="quoted-pairs"),
        pytest.param('<"bob@evil.example>"@example.net>', '<"bob@evil.example>"@example.net>', id="quoted-bracket"),
        pytest.param(
            "<=?utf-8?q?x=40evil.test?=@example.test>",
            "<=?utf-8?q?x=40evil.test?=@example.test>",
            id="encoded-word-is-not-decoded",
        ),
        pytest.param("<ann+tag=x@example.net>", "<ann+tag=x@example.net>", id="sub-address"),
        pytest.param("<Ann.SMITH@Example.NET>", "<Ann.SMITH@Example.NET>", id="case-is-kept"),
    ],
)
def test_recipient_address_reaches_the_platform_as_written(here: Site, written: str, passed_on: str) -> None:
    """No address is decoded, re-quoted or changed in case; only a source route is left out, as RFC 5321 asks."""
    with here.client() as client:
        client.say("MAIL FROM:<app@example.com>")
        assert client.say(f"RCPT TO:{written}") == RCPT_OK
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].recipients == [f"RCPT TO:{passed_on}"]


def test_utf8_address_with_smtputf8_reaches_the_platform(international: Site) -> None:
    """With SMTPUTF8 offered and asked for, addresses outside ASCII go on unchanged, and Received says so."""
    international.forget()
    with international.client() as client:
        assert client.say("MAIL FROM:<jürgen@exämple.com> SMTPUTF8") == MAIL_OK
        assert client.say("RCPT TO:<änn@example.net>") == RCPT_OK
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    (taken,) = international.upstream.taken
    assert taken.mail == "MAIL FROM:<jürgen@exämple.com> SMTPUTF8"
    assert taken.recipients == ["RCPT TO:<änn@example.net>"]
    assert b"\r\n\tby proxy.example.com with UTF8SMTP id " in taken.content


def test_smtputf8_without_need_is_still_passed_on(international: Site) -> None:
    """SMTPUTF8 may be for the header section, so it goes on with ASCII addresses too."""
    international.forget()
    with international.client() as client:
        assert client.say("MAIL FROM:<app@example.com> BODY=8BITMIME SMTPUTF8") == MAIL_OK
        assert client.say("RCPT TO:<ann@example.net>") == RCPT_OK
    assert "MAIL FROM:<app@example.com> BODY=8BITMIME SMTPUTF8" in international.commands()


def test_pipeline_of_a_whole_transaction_is_answered_in_order(here: Site) -> None:
    """MAIL, RCPT, RCPT and DATA in one segment get one reply each, in order (RFC 2920)."""
    with here.client() as client:
        client.send(
            b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
        )
        assert client.replies(4) == [MAIL_OK, RCPT_OK, RCPT_OK, START_MAIL]
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].recipients == ["RCPT TO:<ann@example.net>", "RCPT TO:<bob@example.net>"]


def test_two_transactions_and_quit_in_one_segment_are_all_served(here: Site) -> None:
    """Whatever stands behind the end of a message is the next command, even when it came in the same octets."""
    one = b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nDATA\r\n" + MESSAGE
    with here.client(greeted=False) as client:
        client.send(b"EHLO app.example.com\r\n" + one + one.replace(b"ann", b"bob") + b"QUIT\r\n")
        assert client.reply() == GREETING
        assert client.reply().startswith("250-proxy.example.com\n")
        assert client.replies(4) == [MAIL_OK, RCPT_OK, START_MAIL, QUEUED]
        assert client.replies(4) == [MAIL_OK, RCPT_OK, START_MAIL, QUEUED]
        assert client.reply() == "221 2.0.0 Bye"
        assert client.closed()
    assert [taken.recipients for taken in here.upstream.taken] == [
        ["RCPT TO:<ann@example.net>"],
        ["RCPT TO:<bob@example.net>"],
    ]


def test_commands_octet_by_octet_are_read_like_any(here: Site) -> None:
    """A client that sends one octet at a time is served the same."""
    with here.client() as client:
        for octet in b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nDATA\r\n" + MESSAGE + b"QUIT\r\n":
            client.send(bytes([octet]))
        assert client.replies(5) == [MAIL_OK, RCPT_OK, START_MAIL, QUEUED, "221 2.0.0 Bye"]
    assert here.content() == MESSAGE[:-3]


def test_data_without_recipients_in_a_pipeline_stays_in_step(here: Site) -> None:
    """DATA without a valid recipient is refused, and what follows is read as commands (RFC 2920, 3.1)."""
    with here.client() as client:
        client.send(b"MAIL FROM:<app@example.com>\r\nRCPT TO:<>\r\nDATA\r\nRSET\r\nNOOP\r\n")
        assert client.replies(5) == [MAIL_OK, BAD_RECIPIENT, NO_RECIPIENTS, OK, OK]
        assert client.data(MESSAGE) == QUEUED


def test_half_close_behind_quit_still_gets_every_reply(here: Site) -> None:
    """A client that shuts its sending side down after QUIT reads all its replies."""
    with here.client() as client:
        client.send(b"MAIL FROM:<app@example.com>\r\nRCPT TO:<ann@example.net>\r\nDATA\r\n" + MESSAGE + b"QUIT\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.replies(5) == [MAIL_OK, RCPT_OK, START_MAIL, QUEUED, "221 2.0.0 Bye"]
        assert client.closed()


def test_half_close_without_quit_ends_the_session(here: Site) -> None:
    """A client that shuts its sending side down gets what it asked for, then the end of the connection."""
    with here.client() as client:
        client.send(b"NOOP\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.reply() == OK
        assert client.closed()


def test_refused_recipient_among_others_does_not_end_the_transaction(here: Site) -> None:
    """The message goes to the recipients that were taken, and to no others."""
    with here.client() as client:
        assert client.say("MAIL FROM:<app@example.com>") == MAIL_OK
        assert client.say("RCPT TO:ann@example.net") == RCPT_SYNTAX
        assert client.say("RCPT TO:<bob@example.net>") == RCPT_OK
        assert client.say("DATA") == START_MAIL
        client.send(MESSAGE)
        assert client.reply() == QUEUED
    assert here.upstream.taken[0].recipients == ["RCPT TO:<bob@example.net>"]


def test_mail_refused_leaves_no_transaction_behind(here: Site) -> None:
    """After a MAIL that was refused the next one is not 'nested'."""
    with here.client() as client:
        assert client.say("MAIL FROM:<app@example.com> X-THING") == UNKNOWN_PARAMETER
        assert client.say("RCPT TO:<ann@example.net>") == MAIL_FIRST
        assert client.data(MESSAGE) == QUEUED


def test_rset_gives_the_transaction_up_upstream_too(here: Site) -> None:
    """A message after RSET has only its own recipients."""
    with here.client() as client:
        assert client.say("MAIL FROM:<app@example.com>") == MAIL_OK
        assert client.say("RCPT TO:<wrong@example.net>") == RCPT_OK
        assert client.say("RSET") == OK
        assert client.data(MESSAGE) == QUEUED
    assert here.upstream.taken[0].recipients == ["RCPT TO:<ann@example.net>"]


def test_several_messages_on_one_connection_are_each_their_own(here: Site) -> None:
    """A connection carries one message after the other, also without RSET between them."""
    with here.client() as client:
        for _ in range(3):
            assert client.data(MESSAGE) == QUEUED
        assert client.say("QUIT") == "221 2.0.0 Bye"
        assert client.closed()
    assert len(here.upstream.taken) == 3


def test_empty_message_is_passed_on(here: Site) -> None:
    """A lone dot right after DATA is the end of a message without content."""
    with here.client() as client:
        assert client.data(b".\r\n") == QUEUED
    assert here.content() == b""


def test_ten_errors_end_the_session(here: Site) -> None:
    """Nine mistakes are answered, the tenth ends the session, and it is counted."""
    before = here.proxy.metric("cmail_proxy_sessions_dropped_total", reason="too_many_errors")
    with here.client() as client:
        assert [client.say("MISTAKE") for _ in range(9)] == [UNKNOWN] * 9
        assert client.say("MISTAKE") == TOO_MANY_ERRORS
        assert client.closed()
    assert here.proxy.metric("cmail_proxy_sessions_dropped_total", reason="too_many_errors") == before + 1


@pytest.mark.parametrize("command", ["NOOP", "RSET", "VRFY ann", "HELP", "EHLO app.example.com"])
def test_hundred_commands_that_lead_nowhere_end_the_session(here: Site, command: str) -> None:
    """A hundred commands without a message are served, then comes 421."""
    with Client(here.port, extended=False) as client:
        client.send(f"{command}\r\n".encode() * 101)
        first = client.replies(100)
        assert all(reply.startswith("2") for reply in first)
        assert client.reply() == TOO_MANY_ERRORS
        assert client.closed()


def test_messages_wipe_the_count_of_commands_that_lead_nowhere(here: Site) -> None:
    """A client that keeps its connection for months with NOOP and RSET between messages is not dropped."""
    with here.client() as client:
        for _ in range(2):
            client.send(b"NOOP\r\n" * 90)
            assert client.replies(90) == [OK] * 90
            assert client.data(MESSAGE) == QUEUED
        client.send(b"NOOP\r\n" * 90)
        assert client.replies(90) == [OK] * 90
