"""
One attempt against hosts on script: every stage, every kind of refusal and loss, and what it means for whom.

Longer than other modules: the stages of one attempt share the hosts on script.
"""

import asyncio
import socket

import pytest

from proxy.outbound.client import NextHop
from proxy.outbound.hosts import Smarthost
from proxy.outbound.networks import Networks
from proxy.outbound.transaction import Copy
from proxy.policy.outcome import Outcome, Scope
from tests.outbound.site import ANN, AT_THE_DOT, BOB, CAT, CONTENT, DOMAIN, PATIENCE, SENDER, lab
from tests.support.upstream import CLOSE, EXTENSIONS, RESET, STALL, Reply, Upstream

PLAIN = tuple(each for each in EXTENSIONS if each != "PIPELINING")
pipelining = pytest.mark.parametrize("extensions", [EXTENSIONS, PLAIN], ids=["pipelined", "one-by-one"])


@pipelining
async def test_message_is_delivered_as_it_is(extensions: tuple[str, ...]) -> None:
    """Envelope, octets and result; dots are doubled on the wire only."""
    with lab(extensions=extensions) as here:
        results = await here.send(Copy((ANN, BOB), CONTENT))
        (taken,) = here.servers[0].taken
        assert taken.content == CONTENT
        assert taken.mail == f"MAIL FROM:<{SENDER}> SIZE={len(CONTENT)}"
        assert taken.recipients == [f"RCPT TO:<{ANN}>", f"RCPT TO:<{BOB}>"]
        here.servers[0].wait_for(lambda: here.servers[0].dialogues[0].ended_cleanly)
    for result in results.values():
        assert (result.outcome, result.enhanced, result.host) == ("delivered", "2.0.0", "mx1.example.net")
        assert result.reply is not None
        assert result.reply.text == "queued as PLATFORM1"
        assert not result.tls


async def test_commands_are_pipelined_where_that_is_offered_only() -> None:
    """MAIL, RCPT and DATA come in one write; without PIPELINING each waits for the reply to the last."""
    for extensions, ahead in ((EXTENSIONS, True), (PLAIN, False)):
        with lab(extensions=extensions) as here:
            here.servers[0].pause = 0.05
            await here.send()
            dialogue = here.servers[0].dialogues[0]
            assert bool(dialogue.ahead[dialogue.commands.index(f"RCPT TO:<{ANN}>")]) is ahead


async def test_null_reverse_path_stays_null() -> None:
    """A DSN has no sender."""
    with lab() as here:
        await here.send(reverse_path="")
        assert here.servers[0].taken[0].mail.startswith("MAIL FROM:<> ")


NOTHING_THERE: dict[str, Reply] = {
    "closed": CLOSE,
    "reset": RESET,
    "half-a-reply": "250-and then\nclose",
    "no-reply": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "endless-line": b"2" * 1_000_000,
    "421": "421 4.3.2 going down",
}
gone = pytest.mark.parametrize("reply", [pytest.param(reply, id=name) for name, reply in NOTHING_THERE.items()])


@gone
@pytest.mark.parametrize("stage", ["banner", "EHLO", "MAIL", "RCPT", "DATA"])
@pipelining
async def test_host_that_breaks_off_before_the_message_is_replaced_by_the_next(
    stage: str, reply: Reply, extensions: tuple[str, ...]
) -> None:
    """Nothing was taken, so the next host gets it; if there is none, it is tried again later."""
    with lab({stage: reply}, {}, extensions=extensions) as here:
        results = await here.send(Copy((ANN, BOB), CONTENT))
        assert {each.outcome for each in results.values()} == {Outcome.DELIVERED}
        assert here.taken() == [[], [ANN, BOB]]
    with lab({stage: reply}, extensions=extensions) as here:
        results = await here.send(Copy((ANN, BOB), CONTENT))
        assert {(each.outcome, each.scope) for each in results.values()} == {(Outcome.DEFERRED, Scope.HOST)}
        # A reset in place of the banner can be there before the connection is.
        stages = {stage.lower(), "connect"} if stage == "banner" else {stage.lower()}
        assert {each.stage for each in results.values()} <= stages


@pytest.mark.parametrize("stage", ["banner", "EHLO", "MAIL", "RCPT", "DATA"])
@pipelining
async def test_host_that_stalls_before_the_message_is_replaced_by_the_next(
    stage: str, extensions: tuple[str, ...]
) -> None:
    """After the time for a reply."""
    with lab({stage: STALL}, {}, extensions=extensions) as here:
        results = await here.send(hosts=here.mx_hosts(hasty=True).of(DOMAIN))
        assert results[ANN].outcome is Outcome.DELIVERED
        assert here.taken() == [[], [ANN]]


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("banner", "421 4.3.2 busy"),
        ("banner", "450 4.7.1 not now"),
        ("banner", "521 5.3.2 no mail here"),
        ("banner", "554-5.7.1 blocked\n554 5.7.1 for ever"),
        ("banner", "250 hello"),
        ("EHLO", "450 4.7.1 what a name"),
        ("MAIL", "451 4.7.1 greylisted"),
        ("MAIL", "452 4.3.1 disk"),
        ("MAIL", "530 5.7.0 Must issue a STARTTLS command first"),
        ("MAIL", "354 what"),
        ("RCPT", "450 4.2.0 greylisted"),
        ("RCPT", "354 what"),
        ("DATA", "451 4.3.0 later"),
        ("DATA", "250 what"),
        ("dot", "451 4.3.0 later"),
        ("dot", "421 4.7.0 later"),
    ],
)
@pipelining
async def test_refusal_for_now_goes_on_to_the_next_host(stage: str, reply: str, extensions: tuple[str, ...]) -> None:
    """RFC 5321, 5.1: hosts in order until one takes it; and where none does, nobody fails for good."""
    with lab({stage: reply}, {}, extensions=extensions) as here:
        results = await here.send()
        assert results[ANN].outcome is Outcome.DELIVERED
        assert results[ANN].host == "mx2.example.net"
        assert here.taken()[1] == [ANN]
    with lab({stage: reply}, {"banner": CLOSE}, extensions=extensions) as here:
        assert (await here.send())[ANN].outcome is Outcome.DEFERRED


@pytest.mark.parametrize(
    ("stage", "reply", "enhanced"),
    [
        ("MAIL", "550 5.1.8 sender unknown", "5.1.8"),
        ("MAIL", "552 5.3.4 too big", "5.3.4"),
        ("RCPT", "550 5.1.1 user unknown", "5.1.1"),
        ("RCPT", "554 5.7.1 relay access denied", "5.7.1"),
        ("DATA", "554 5.7.1 no", "5.7.1"),
        ("dot", "554 5.7.1 spam", "5.7.1"),
        ("dot", "552 5.3.4 too big", "5.3.4"),
    ],
)
@pipelining
async def test_refusal_for_good_ends_it_at_once(
    stage: str, reply: str, enhanced: str, extensions: tuple[str, ...]
) -> None:
    """Another host would only bounce it later; the host's own words are kept."""
    with lab({stage: reply}, {}, extensions=extensions) as here:
        results = await here.send()
        assert (results[ANN].outcome, results[ANN].enhanced) == (Outcome.FAILED, enhanced)
        assert str(results[ANN].reply) == reply
        assert here.connections() == [1, 0]


async def test_recipient_whose_mailbox_is_full_waits_without_asking_other_hosts() -> None:
    """They deliver to the same mailbox."""
    with lab({"RCPT": "552 5.2.2 over quota"}, {}) as here:
        results = await here.send()
        assert (results[ANN].outcome, results[ANN].scope, results[ANN].enhanced) == ("deferred", "recipient", "4.2.2")
        assert here.connections() == [1, 0]


def mixed(line: str) -> str:
    """Ann is welcome, Bob is unknown, Cat is to come again."""
    if ANN in line:
        return "250 2.1.5 fine"
    return "550 5.1.1 user unknown" if BOB in line else "450 4.2.0 greylisted"


@pipelining
async def test_each_recipient_has_a_result_of_its_own(extensions: tuple[str, ...]) -> None:
    """Only who is deferred goes on to the next host; nobody gets the message twice."""
    with lab({"RCPT": mixed}, {"RCPT": "450 4.2.0 greylisted here, too"}, extensions=extensions) as here:
        results = await here.send(Copy((ANN, BOB, CAT), CONTENT))
        assert [results[each].outcome for each in (ANN, BOB, CAT)] == ["delivered", "failed", "deferred"]
        assert here.taken() == [[ANN], []]
        assert here.servers[1].dialogues[0].count("RCPT") == 1
    with lab({"RCPT": mixed}, {}, extensions=extensions) as here:
        results = await here.send(Copy((ANN, BOB, CAT), CONTENT))
        assert [results[each].outcome for each in (ANN, BOB, CAT)] == ["delivered", "failed", "delivered"]
        assert here.taken() == [[ANN], [CAT]]


@pytest.mark.parametrize("data", ["354 go ahead", "503 5.5.1 no recipients", "554 5.5.1 no valid recipients"])
@pytest.mark.parametrize("stage", ["MAIL", "RCPT"])
async def test_connection_stays_in_step_when_nobody_is_left(stage: str, data: str) -> None:
    """A pipelined DATA that nobody is left for is answered; a host that asks for the message gets none."""
    replies: list[Reply] = ["550 5.7.1 not this one", "250 fine"]
    script: dict[str, Reply] = {stage: lambda _: replies[0] if len(replies) == 1 else replies.pop(0), "DATA": data}  # type: ignore[dict-item, return-value]
    with lab(script) as here:
        server = here.servers[0]
        server.replies["RSET"] = "250 reset"
        if data != "354 go ahead":
            states = iter([data, "354 go ahead"])
            server.replies["DATA"] = lambda _: next(states)
        results = await here.send(Copy((ANN,), CONTENT), Copy((BOB,), CONTENT))
        assert (results[ANN].outcome, results[BOB].outcome) == (Outcome.FAILED, Outcome.DELIVERED)
        assert len(server.dialogues) == 1
        assert [each.content for each in server.taken if each.octets] == [CONTENT]


@pytest.mark.parametrize("act", [CLOSE, RESET])
async def test_host_that_breaks_off_at_the_dot_may_have_the_message(act: str) -> None:
    """The one window that SMTP leaves open: not tried elsewhere at once, and said in the detail."""
    with lab({"dot": act}, {}) as here:
        results = await here.send(Copy((ANN, BOB), CONTENT))
        for result in results.values():
            assert (result.outcome, result.scope, result.enhanced) == ("deferred", "message", "4.4.2")
            assert result.detail.startswith("may have been taken")
        assert here.connections() == [1, 0]


async def test_host_that_stalls_at_the_dot_may_have_the_message() -> None:
    """The same after the time for the last reply."""
    with lab({"dot": STALL}, {}) as here:
        result = (await here.send(patience=AT_THE_DOT))[ANN]
        assert result.detail.startswith("may have been taken")
        assert here.connections() == [1, 0]


async def test_other_copies_are_not_held_up_by_one_that_may_have_been_taken() -> None:
    """They were not sent, so the next host gets them."""
    with lab({"dot": CLOSE}, {}) as here:
        results = await here.send(Copy((ANN,), CONTENT), Copy((BOB,), CONTENT))
        assert results[ANN].detail.startswith("may have been taken")
        assert results[BOB].outcome is Outcome.DELIVERED
        assert here.taken()[1] == [BOB]


LARGE = b"Subject: large\r\n\r\n" + b"x" * 998 + b"\r\n" + b".dots and more\r\n" * 200_000
HUGE = LARGE * 4  # more than the kernel takes on its own, so that a host which stops is noticed before the dot


async def test_large_message_arrives_as_it_is() -> None:
    """In pieces, with a host that reads slowly at times."""
    with lab() as here:
        assert (await here.send(Copy((ANN,), LARGE)))[ANN].outcome is Outcome.DELIVERED
        assert here.servers[0].taken[0].content == LARGE


@pytest.mark.parametrize("act", [CLOSE, RESET])
async def test_host_that_breaks_off_inside_a_large_message_is_replaced_by_the_next(act: str) -> None:
    """Without the dot it has no message."""
    with lab({"after:100000": act}, {}) as here:
        assert (await here.send(Copy((ANN,), HUGE)))[ANN].outcome is Outcome.DELIVERED
        assert here.taken() == [[], [ANN]]


async def test_host_that_takes_no_more_of_a_large_message_is_replaced_by_the_next() -> None:
    """It stalls with full buffers."""
    with lab({"after:100000": STALL}, {}) as here:
        results = await here.send(Copy((ANN,), HUGE), hosts=here.mx_hosts(hasty=True).of(DOMAIN))
        assert results[ANN].outcome is Outcome.DELIVERED
        assert here.taken()[1] == [ANN]


async def test_refusal_inside_a_large_message_counts() -> None:
    """A host need not wait for the end to say no; it gets no dot."""
    with lab({"after:100000": "552 5.3.4 too much\nclose"}, {}) as here:
        result = (await here.send(Copy((ANN,), HUGE)))[ANN]
        assert result.outcome in (Outcome.FAILED, Outcome.DELIVERED)
        if result.outcome is Outcome.FAILED:  # the reset that follows may overtake the reply
            assert result.enhanced == "5.3.4"
            assert here.connections() == [1, 0]


async def test_success_inside_a_message_is_none() -> None:
    """A host that says 250 before the dot has lost its step; it has no message."""
    with lab({"after:100000": "250 2.0.0 thank you"}, {}) as here:
        assert (await here.send(Copy((ANN,), HUGE)))[ANN].outcome is Outcome.DELIVERED
        assert here.taken() == [[], [ANN]]


# Several copies


@pipelining
async def test_copies_go_over_one_connection(extensions: tuple[str, ...]) -> None:
    """One transaction each; a copy that is refused does not stop the others."""
    with lab({"RCPT": mixed}, extensions=extensions) as here:
        contents = [CONTENT + f"copy {number}\r\n".encode() for number in range(3)]
        results = await here.send(*(Copy((who,), each) for who, each in zip((BOB, ANN, CAT), contents, strict=True)))
        assert [results[each].outcome for each in (ANN, BOB, CAT)] == ["delivered", "failed", "deferred"]
        assert [each.content for each in here.servers[0].taken if each.octets] == [contents[1]]
        assert here.connections() == [1]


async def test_host_that_wants_fewer_recipients_gets_the_rest_in_another_transaction() -> None:
    """RFC 5321, 4.5.3.1.10: at once, over the same connection."""
    with lab(extensions=PLAIN) as here:
        seen: list[str] = []

        def two(line: str) -> str:
            seen.append(line)
            return "250 fine" if len(seen) % 3 else "452 4.5.3 too many recipients"

        here.servers[0].replies["RCPT"] = two
        results = await here.send(Copy((ANN, BOB, CAT), CONTENT))
        assert {each.outcome for each in results.values()} == {Outcome.DELIVERED}
        assert here.taken() == [[ANN, BOB, CAT]]
        assert (len(here.servers[0].taken), here.connections()) == (2, [1])


async def test_host_that_closes_after_each_message_gets_them_all() -> None:
    """As long as each connection delivers something, another one is opened."""
    with lab({"RSET": CLOSE}) as here:
        here.servers[0].replies["dot"] = "250 2.0.0 taken\nclose"
        people = [f"p{number}@example.net" for number in range(6)]
        results = await here.send(*(Copy((each,), CONTENT) for each in people))
        assert {each.outcome for each in results.values()} == {Outcome.DELIVERED}
        assert here.taken() == [people]


async def test_host_that_closes_with_each_refusal_refuses_them_all_in_one_attempt() -> None:
    """Not one copy at each attempt, for days."""
    with lab() as here:
        here.servers[0].replies["dot"] = "554 5.7.1 spam\nclose"
        people = [f"p{number}@example.net" for number in range(6)]
        results = await here.send(*(Copy((each,), CONTENT) for each in people))
        assert {each.outcome for each in results.values()} == {Outcome.FAILED}


async def test_words_with_which_a_host_closes_are_kept_for_the_other_copies() -> None:
    """So that the log tells why they were not sent."""
    with lab({"dot": "421 4.7.0 enough for now"}) as here:
        results = await here.send(Copy((ANN,), CONTENT), Copy((BOB,), CONTENT))
        assert results[ANN].scope is Scope.MESSAGE
        assert (results[BOB].outcome, results[BOB].scope) == (Outcome.DEFERRED, Scope.HOST)
        assert "enough for now" in results[BOB].detail


async def test_host_that_dies_at_the_second_copy_keeps_the_first() -> None:
    """What was taken is not sent again."""
    with lab({}, {}) as here:
        replies = iter(["250 2.1.0 fine", CLOSE, CLOSE, CLOSE])
        here.servers[0].replies["MAIL"] = lambda _: next(replies)
        results = await here.send(Copy((ANN,), CONTENT), Copy((BOB,), CONTENT))
        assert {each.outcome for each in results.values()} == {Outcome.DELIVERED}
        assert here.taken() == [[ANN], [BOB]]


# Which hosts


async def test_no_more_than_two_hosts_are_talked_to() -> None:
    """A message is not carried around all hosts of a domain that does not want it now."""
    with lab(*[{"RCPT": "450 4.2.0 greylisted"}] * 4) as here:
        assert (await here.send())[ANN].enhanced == "4.2.0"
        assert here.connections() == [1, 1, 0, 0]


async def test_hosts_that_cannot_be_talked_to_do_not_count() -> None:
    """The last one of four takes it."""
    with lab({"banner": CLOSE}, {"banner": "421 busy"}, {"EHLO": "450 no"}, {}) as here:
        assert (await here.send())[ANN].outcome is Outcome.DELIVERED
        assert here.connections() == [1, 1, 1, 1]


async def test_domain_whose_hosts_never_take_mail_fails() -> None:
    """RFC 7504: 521 from each of them; one that cannot be reached may be different tomorrow."""
    never = {"banner": "521 5.3.2 no mail"}
    with lab(never, never) as here:
        assert (await here.send())[ANN].outcome is Outcome.FAILED
    with lab({"banner": CLOSE}, never) as here:
        assert (await here.send())[ANN].outcome is Outcome.DEFERRED


async def test_other_addresses_of_a_host_are_tried_before_the_next_host() -> None:
    """One name may stand for several machines."""
    zone = (
        "example.net 300 MX 0 many.example.net.",
        "many.example.net 300 A 127.0.0.2",
        "many.example.net 300 A 127.0.0.3",
    )
    with lab({"banner": "421 busy"}, {}, zone=zone) as here:
        result = (await here.send())[ANN]
        assert (result.outcome, result.host) == (Outcome.DELIVERED, "many.example.net")
        assert here.connections()[0] <= 1
        assert here.taken() == [[], [ANN]]


async def test_host_with_ipv6_is_delivered_to_by_it() -> None:
    """Where the machine has it; an IPv4 address of the same host that is out of order does not matter."""
    zone = ("six.example 300 AAAA ::1", "six.example 300 A 127.0.0.99")
    with lab(zone=zone) as here:
        try:
            server = Upstream(address="::1", port=here.servers[0].port)
        except OSError:
            pytest.skip("no IPv6 on this machine")
        with server:
            results = await here.send(Copy(("ann@six.example",), CONTENT), hosts=here.mx_hosts().of("six.example"))
            assert results["ann@six.example"].outcome is Outcome.DELIVERED
            assert len(server.taken) == 1


async def test_host_that_is_not_there_is_unreachable() -> None:
    """Connection refused, at all of its addresses."""
    with lab(zone=("down.example 300 A 127.0.0.99", "down.example 300 AAAA ::1")) as here:
        result = (await here.send(hosts=here.mx_hosts().of("down.example")))[ANN]
        assert (result.outcome, result.scope, result.enhanced) == ("deferred", "host", "4.4.1")
        assert result.detail.startswith("cannot connect to down.example: ")


async def test_route_that_fails_is_everybodys_result() -> None:
    """No such domain."""
    with lab() as here:
        results = await here.send(Copy((ANN, BOB), CONTENT), hosts=here.mx_hosts().of("nowhere.invalid"))
        assert {each.enhanced for each in results.values()} == {"5.1.2"}


async def test_address_is_held_against_the_settings_again_at_connect() -> None:
    """Even where a route has it: here the resolver allows what the connection does not."""
    with lab() as here:
        result = (await here.send(hosts=here.mx_hosts(networks=Networks()).of(DOMAIN)))[ANN]
        assert (result.outcome, result.enhanced) == ("failed", "5.4.4")
        assert here.connections() == [0]


async def test_host_that_calls_itself_as_we_do_is_a_loop() -> None:
    """An address before a NAT does not show that it is ours; the less preferred hosts would send it back to us."""
    with lab({}, {}) as here:
        result = (await here.send(hosts=here.mx_hosts(helo_name="platform.example").of(DOMAIN)))[ANN]
        assert (result.outcome, result.enhanced) == ("failed", "5.4.6")
        assert here.connections() == [1, 0]


async def test_address_literal_is_delivered_to() -> None:
    """Mail for ann@[127.0.0.2]."""
    with lab() as here:
        results = await here.send(Copy(("ann@[127.0.0.2]",), CONTENT), hosts=here.mx_hosts().of("[127.0.0.2]"))
        assert results["ann@[127.0.0.2]"].outcome is Outcome.DELIVERED


async def test_old_host_is_greeted_with_helo() -> None:
    """RFC 5321, 3.2: after a refused EHLO; then nothing is pipelined and no parameter is given."""
    with lab({"EHLO": "502 5.5.1 what"}) as here:
        assert (await here.send())[ANN].outcome is Outcome.DELIVERED
        assert here.servers[0].taken[0].mail == f"MAIL FROM:<{SENDER}>"


async def test_host_that_takes_neither_ehlo_nor_helo_defers() -> None:
    """It does not like our name, which is not the recipient's fault."""
    with lab({"EHLO": "550 5.7.1 no", "HELO": "550 5.7.1 no"}) as here:
        result = (await here.send())[ANN]
        assert (result.outcome, result.scope, result.enhanced) == ("deferred", "host", "4.7.1")


# What a message needs


async def test_message_larger_than_the_offer_fails_unsent() -> None:
    """SIZE."""
    with lab({}, {}, extensions=("SIZE 100", "PIPELINING")) as here:
        result = (await here.send(Copy((ANN,), b"x" * 101)))[ANN]
        assert (result.outcome, result.scope, result.enhanced) == ("failed", "message", "5.3.4")
        assert not here.servers[0].dialogues[0].count("MAIL")
    with lab(extensions=("SIZE", "PIPELINING")) as here:
        assert (await here.send(Copy((ANN,), LARGE)))[ANN].outcome is Outcome.DELIVERED


EIGHT_BIT = "Subject: hi\r\n\r\nGrüße\r\n".encode()
UTF8_HEADER = "Subject: Grüße\r\n\r\nbody\r\n".encode()


async def test_eight_bit_message_says_so_and_needs_the_extension() -> None:
    """BODY=8BITMIME where it has octets above 127; without the extension the next host may have it."""
    with lab() as here:
        await here.send(Copy((ANN,), EIGHT_BIT))
        assert here.servers[0].taken[0].mail.endswith(" BODY=8BITMIME")
        assert here.servers[0].taken[0].content == EIGHT_BIT
    with lab({}, {}, extensions=("PIPELINING",)) as here:
        result = (await here.send(Copy((ANN,), EIGHT_BIT)))[ANN]
        assert (result.outcome, result.enhanced) == ("failed", "5.6.3")
        assert here.connections() == [1, 1]
    with lab({}, {}, extensions=("PIPELINING",)) as here:
        here.servers[1].extensions = EXTENSIONS
        assert (await here.send(Copy((ANN,), EIGHT_BIT)))[ANN].outcome is Outcome.DELIVERED


async def test_host_without_eight_bit_gets_the_seven_bit_form() -> None:
    """RFC 6152, 3: made for this host alone, with its own SIZE, and only where it is needed."""
    asked = []

    def in_seven_bits() -> bytes:
        asked.append(1)
        return EIGHT_BIT.replace("ü".encode(), b"=C3=BC").replace("ß".encode(), b"=C3=9F")

    copy = Copy((ANN, BOB), EIGHT_BIT, in_seven_bits)
    with lab({}, {"banner": CLOSE}, extensions=("PIPELINING", "SIZE")) as here:
        assert (await here.send(copy))[BOB].outcome is Outcome.DELIVERED
        (taken,) = here.servers[0].taken
        assert taken.mail == f"MAIL FROM:<{SENDER}> SIZE={len(in_seven_bits())}"
        assert taken.content == in_seven_bits()
    asked.clear()
    with lab() as here:
        await here.send(copy)
        assert here.servers[0].taken[0].content == EIGHT_BIT
        assert not asked
    with lab(extensions=("PIPELINING",)) as here:
        result = (await here.send(Copy((ANN,), EIGHT_BIT, lambda: None)))[ANN]
        assert (result.outcome, result.enhanced) == ("failed", "5.6.3")


@pytest.mark.parametrize(
    ("recipient", "content", "reverse_path", "asked", "needed"),
    [
        ("jürgen@example.net", CONTENT, SENDER, True, True),
        (ANN, CONTENT, "jürgen@example.com", True, True),
        (ANN, UTF8_HEADER, SENDER, True, True),
        (ANN, UTF8_HEADER, SENDER, False, False),
        (ANN, EIGHT_BIT, SENDER, True, False),
        (ANN, CONTENT, SENDER, True, False),
        ("ann@bücher.example", CONTENT, "app@bücher.example", False, False),
    ],
)
async def test_smtputf8_is_asked_for_where_it_is_needed(
    recipient: str, content: bytes, reverse_path: str, asked: bool, needed: bool
) -> None:
    """For local parts outside ASCII, and for headers of a message that came with it; domains have A-labels."""
    copy = Copy((recipient,), content)
    with lab(extensions=(*EXTENSIONS, "SMTPUTF8")) as here:
        results = await here.send(copy, reverse_path=reverse_path, smtputf8=asked)
        assert results[recipient].outcome is Outcome.DELIVERED
        (taken,) = here.servers[0].taken
        assert taken.mail.endswith(" SMTPUTF8") is needed
        if not needed:
            assert (taken.mail + "".join(taken.recipients)).isascii()
    with lab() as here:
        result = (await here.send(copy, reverse_path=reverse_path, smtputf8=asked))[recipient]
        assert result.enhanced == ("5.6.7" if needed else "2.0.0")


@pytest.mark.parametrize("stage", ["banner", "MAIL", "RCPT", "DATA", "after:100000", "dot"])
async def test_attempt_that_is_cancelled_leaves_no_connection_and_no_message(stage: str) -> None:
    """Whatever it waits for: the connection is closed, and without the dot the host has nothing."""
    with lab({stage: STALL}) as here:
        server = here.servers[0]
        task = asyncio.ensure_future(here.send(Copy((ANN,), HUGE)))
        await asyncio.to_thread(server.wait_for, lambda: bool(server.dialogues))
        if stage == "dot":
            await asyncio.to_thread(server.wait_for, lambda: bool(server.taken))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not server.open  # it has ended, and has read all that came
    assert len(server.taken) == (stage == "dot")


async def test_recipient_with_control_characters_never_reaches_a_command() -> None:
    """Whatever let it in; the others are delivered."""
    bad = "x@example.net>\r\nRCPT TO:<y@example.net"
    with lab() as here:
        results = await here.send(Copy((bad, ANN), CONTENT))
        assert (results[bad].outcome, results[ANN].outcome) == (Outcome.FAILED, Outcome.DELIVERED)
        assert here.taken() == [[ANN]]
        assert not any("y@" in each for each in here.servers[0].dialogues[0].commands)


async def test_sender_that_is_no_address_fails_unsent() -> None:
    """Octets that are no UTF-8, say: nobody is bothered with them."""
    with lab() as here:
        results = await here.send(reverse_path="\udcff@example.com")
        assert (results[ANN].outcome, results[ANN].enhanced) == (Outcome.FAILED, "5.1.7")
        assert here.connections() == [0]


# The smarthost


def smarthost(port: int, tls: str = "none", username: str = "", password: str = "") -> Smarthost:
    """The host on 127.0.0.2 as smarthost."""
    return Smarthost(NextHop("127.0.0.2", port, tls, None, "out.example.com", username, password), PATIENCE)


async def test_smarthost_takes_mail_for_all_domains() -> None:
    """With AUTH where it is configured."""
    with lab(extensions=(*EXTENSIONS, "AUTH PLAIN")) as here:
        hosts = smarthost(here.servers[0].port, username="user", password="secret")
        results = await here.send(Copy((ANN, "x@elsewhere.invalid"), CONTENT), hosts=hosts)
        assert {each.outcome for each in results.values()} == {Outcome.DELIVERED}
        assert here.servers[0].dialogues[0].count("AUTH") == 1
        assert not here.names.asked


@pytest.mark.parametrize(
    ("script", "extensions", "enhanced"),
    [
        ({"AUTH": "535 5.7.8 c2VjcmV0LXNlY3JldA=="}, "AUTH PLAIN", "4.7.8"),
        ({"AUTH": "454 4.7.0 later"}, "AUTH PLAIN", "4.7.0"),
        ({"AUTH": CLOSE}, "AUTH PLAIN", "4.4.2"),
        ({}, "AUTH GSSAPI", "4.7.4"),
        ({}, "8BITMIME", "4.7.4"),
    ],
)
async def test_smarthost_that_does_not_let_us_in_defers(
    script: dict[str, Reply], extensions: str, enhanced: str
) -> None:
    """The operator mends it; the app's mail waits, and no credential is in the words about it."""
    with lab(script, extensions=(extensions,)) as here:
        hosts = smarthost(here.servers[0].port, username="user", password="secret-secret")
        result = (await here.send(hosts=hosts))[ANN]
        assert (result.outcome, result.scope, result.enhanced) == ("deferred", "host", enhanced)
        assert "c2Vj" not in f"{result}"


async def test_smarthost_that_is_not_there_defers() -> None:
    """Nothing listens."""
    with lab() as here:
        with socket.create_server(("127.0.0.2", 0)) as taken:
            port = taken.getsockname()[1]
        result = (await here.send(hosts=smarthost(port)))[ANN]
        assert (result.outcome, result.enhanced) == ("deferred", "4.4.1")
