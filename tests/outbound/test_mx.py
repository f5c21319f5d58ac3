"""Where mail for a domain goes, asked of a name server on script, by UDP and TCP."""

import asyncio
import ipaddress
import random
import socket
from collections.abc import Callable

import pytest

from proxy.outbound.mx import Host, Resolver, ResolverSettings, Route, literal_address, normal_domain
from proxy.outbound.networks import Networks
from proxy.policy.outcome import Result
from tests.support.nameserver import NameServer

LAB = Networks([ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")])


CHANCE = random.Random(1)  # noqa: S311


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def resolver(
    server: NameServer,
    networks: Networks = LAB,
    clock: Callable[[], float] | None = None,
    seed: int = 1,
    cache_domains: int = 100,
    own_names: frozenset[str] = frozenset(),
    own_addresses: frozenset[str] = frozenset(),
    lifetime_seconds: float = 20,
) -> Resolver:
    """A resolver that asks the scripted server only."""
    settings = ResolverSettings(
        nameservers=("127.0.0.1",),
        port=server.port,
        timeout_seconds=min(5, lifetime_seconds),
        lifetime_seconds=lifetime_seconds,
        cache_domains=cache_domains,
        own_names=own_names,
        own_addresses=own_addresses,
    )
    return Resolver(
        settings,
        networks,
        random.Random(seed),  # noqa: S311
        clock or Clock(),
    )


async def hosts(domain: str, *zone: str, networks: Networks = LAB, **settings: frozenset[str]) -> list[str]:
    """The names of the hosts for a domain, in order."""
    with NameServer(zone) as server:
        route = await resolver(server, networks, **settings).route(domain)  # type: ignore[arg-type]
    assert isinstance(route, Route), route
    return [host.name for host in route.hosts]


async def refusal(domain: str, *zone: str, networks: Networks = LAB, **settings: frozenset[str]) -> Result:
    """The result for everybody in a domain that cannot be reached."""
    with NameServer(zone) as server:
        result = await resolver(server, networks, **settings).route(domain)  # type: ignore[arg-type]
    assert isinstance(result, Result), result
    return result


A1, A2, A3 = (f"mx{number}.example.net 300 A 127.0.0.{number}" for number in (1, 2, 3))


async def test_hosts_are_in_the_order_of_preference() -> None:
    """The lowest number first, whatever the order of the records."""
    zone = ["example.net 300 MX 30 mx3.example.net.", "example.net 300 MX 5 mx1.example.net."]
    assert await hosts("example.net", *zone, "example.net 300 MX 10 mx2.example.net.", A1, A2, A3) == [
        "mx1.example.net",
        "mx2.example.net",
        "mx3.example.net",
    ]


async def test_hosts_of_equal_preference_are_shuffled_each_time() -> None:
    """The load is spread; those of another preference keep their place."""
    zone = [
        f"example.net 300 MX {preference} mx{number}.example.net." for number, preference in ((1, 5), (2, 5), (3, 9))
    ]
    with NameServer([*zone, A1, A2, A3]) as server:
        mx = resolver(server)
        seen = set()
        for _ in range(50):
            route = await mx.route("example.net")
            assert isinstance(route, Route)
            seen.add(tuple(host.name[:3] for host in route.hosts))
    assert seen == {("mx1", "mx2", "mx3"), ("mx2", "mx1", "mx3")}


async def test_domain_without_mx_is_its_own_host() -> None:
    """RFC 5321, 5.1: the implicit MX."""
    assert await hosts("example.net", "example.net 300 A 127.0.0.1") == ["example.net"]
    assert await hosts("example.net", "example.net 300 AAAA ::1") == ["example.net"]


async def test_addresses_are_of_both_families_in_turn() -> None:
    """IPv6 first, and IPv4 right behind it."""
    zone = ["example.net 300 A 127.0.0.1", "example.net 300 A 127.0.0.2", "example.net 300 AAAA ::1"]
    with NameServer(zone) as server:
        route = await resolver(server).route("example.net")
    assert isinstance(route, Route)
    (host,) = route.hosts
    assert host.addresses[0] == "::1"
    assert sorted(host.addresses[1:]) == ["127.0.0.1", "127.0.0.2"]


async def test_null_mx_refuses_mail_for_good() -> None:
    """RFC 7505: a lone ``.`` means that no mail is taken, though there is an address."""
    result = await refusal("example.net", "example.net 300 MX 0 .", "example.net 300 A 127.0.0.1")
    assert (result.outcome, result.enhanced) == ("failed", "5.1.10")


async def test_null_mx_among_others_says_nothing() -> None:
    """RFC 7505, 3: it may only be alone."""
    zone = ["example.net 300 MX 0 .", "example.net 300 MX 10 mx1.example.net.", A1]
    assert await hosts("example.net", *zone) == ["mx1.example.net"]


async def test_mx_record_that_names_no_host_is_left_out() -> None:
    """The DNS takes any octet; a host name has letters, digits and few signs."""
    zone = [r"example.net 300 MX 5 mx\010evil.example.net.", "example.net 300 MX 6 *.example.net."]
    assert await hosts("example.net", *zone, "example.net 300 MX 10 mx1.example.net.", A1) == ["mx1.example.net"]
    assert (await refusal("example.net", *zone)).enhanced == "5.4.4"


async def test_domain_that_does_not_exist_fails() -> None:
    """NXDOMAIN."""
    result = await refusal("nowhere.invalid", "example.net 300 A 127.0.0.1")
    assert (result.outcome, result.scope, result.enhanced) == ("failed", "recipient", "5.1.2")
    assert "nowhere.invalid" in result.detail


async def test_domain_with_no_mail_host_at_all_fails_without_blame_for_the_address() -> None:
    """It exists, and has neither MX nor address: 5.4.4, which suppresses nobody."""
    result = await refusal("example.net", "example.net 300 TXT nothing")
    assert (result.outcome, result.enhanced) == ("failed", "5.4.4")


async def test_mx_hosts_that_do_not_exist_are_left_out() -> None:
    """The next one is used; if there is none, the domain has no host."""
    zone = ["example.net 300 MX 5 gone.example.net.", "example.net 300 MX 10 mx1.example.net."]
    assert await hosts("example.net", *zone, A1) == ["mx1.example.net"]
    assert (await refusal("example.net", *zone)).enhanced == "5.4.4"


@pytest.mark.parametrize(("trouble", "word"), [("SERVFAIL", "SERVFAIL"), ("REFUSED", "REFUSED")])
async def test_name_server_in_trouble_defers(trouble: str, word: str) -> None:
    """It may know tomorrow."""
    result = await refusal("example.net", f"example.net {trouble}")
    assert (result.outcome, result.scope, result.enhanced) == ("deferred", "host", "4.4.3")
    assert word in result.detail


async def test_name_server_that_is_silent_defers() -> None:
    """After the time for all questions, whatever the number of tries."""
    with NameServer(["example.net silent"]) as server:
        result = await resolver(server, lifetime_seconds=0.3).route("example.net")
    assert isinstance(result, Result)
    assert (result.outcome, result.enhanced) == ("deferred", "4.4.3")
    assert "no answer within 0.3 s" in result.detail


async def test_name_server_that_is_not_there_defers() -> None:
    """Nothing listens on its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = ResolverSettings(("127.0.0.1",), port, timeout_seconds=0.2, lifetime_seconds=0.4)
    result = await Resolver(settings, LAB, CHANCE).route("example.net")
    assert isinstance(result, Result)
    assert (result.outcome, result.enhanced) == ("deferred", "4.4.3")


async def test_trouble_with_one_host_leaves_the_others() -> None:
    """A host whose address cannot be found out now is left out, unless it is all there is."""
    zone = ["example.net 300 MX 5 mx1.example.net.", "mx1.example.net SERVFAIL"]
    assert await hosts("example.net", *zone, "example.net 300 MX 9 mx2.example.net.", A2) == ["mx2.example.net"]
    assert (await refusal("example.net", *zone)).enhanced == "4.4.3"


async def test_trouble_with_one_family_leaves_the_other() -> None:
    """Name servers exist that know no AAAA; such a domain has mail all the same."""
    zone = ["example.net 300 MX 5 mx1.example.net.", "mx1.example.net SERVFAIL AAAA", A1]
    assert await hosts("example.net", *zone) == ["mx1.example.net"]


async def test_truncated_answer_is_asked_for_by_tcp() -> None:
    """An answer that does not fit a datagram."""
    zone = [f"example.net 300 MX {number} mx{number}.example.net." for number in (1, 2, 3)]
    with NameServer([*zone, A1, A2, A3]) as server:
        server.truncates.add("example.net")
        route = await resolver(server).route("example.net")
        assert isinstance(route, Route)
        assert len(route.hosts) == 3
        assert server.asked[:2] == ["example.net MX udp", "example.net MX tcp"]


@pytest.mark.parametrize("follows", [True, False])
async def test_alias_at_the_domain_is_followed(follows: bool) -> None:
    """RFC 5321, 5.1: what a CNAME leads to is used in place of the name, whoever follows it."""
    zone = ["alias.example 300 CNAME example.net.", "example.net 300 MX 5 mx1.example.net.", A1]
    with NameServer(zone, follows=follows) as server:
        route = await resolver(server).route("alias.example")
    assert isinstance(route, Route)
    assert route == Route("alias.example", (Host("mx1.example.net", ("127.0.0.1",), 5),))


async def test_alias_to_a_domain_without_mx_is_its_host() -> None:
    """The implicit MX of what the alias stands for."""
    zone = ["alias.example 300 CNAME example.net.", "example.net 300 A 127.0.0.1"]
    assert await hosts("alias.example", *zone) == ["example.net"]


async def test_aliases_in_a_circle_defer() -> None:
    """A zone that is broken today."""
    zone = ["a.example 300 CNAME b.example.", "b.example 300 CNAME a.example."]
    for follows in (True, False):
        with NameServer(zone, follows=follows) as server:
            result = await resolver(server).route("a.example")
        assert isinstance(result, Result)
        assert (result.outcome, result.enhanced) == ("deferred", "4.4.3")


@pytest.mark.parametrize(
    "domain",
    ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "XN--BCHER-KVA.Example."],
)
async def test_internationalized_domain_is_looked_up_by_its_a_label(domain: str) -> None:
    """U-labels and A-labels in any case are one domain."""
    assert await hosts(domain, "xn--bcher-kva.example 300 A 127.0.0.1") == ["xn--bcher-kva.example"]


@pytest.mark.parametrize(
    ("domain", "normal"),
    [
        ("Example.NET", "example.net"),
        ("example.net.", "example.net"),
        ("faß.example", "xn--fa-hia.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("a_b.example", "a_b.example"),
        ("[127.0.0.1]", "[127.0.0.1]"),
        ("[IPv6:::1]", "[ipv6:::1]"),
        ("", None),
        (".", None),
        ("a..b", None),
        (".example", None),
        ("x" * 64 + ".example", None),
        (".".join(["x" * 60] * 5), None),
        ("x" * 5000, None),
        ("a b.example", None),
        ("a!b.example", None),
        ("a\\046b.example", None),
        ("a\x00.example", None),
        ("a\r\nb.example", None),
        ("[127.0.0.1", None),
        ("[127.0.0]", None),
        ("[IPv6:127.0.0.1]", None),
        ("[::1]", None),
        ("[IPv6:fe80::1%lo]", None),
        ("[example.net]", None),
        ("[]", None),
        ("\ud800.example", None),
        ("\u2028.example", None),
    ],
)
def test_domain_has_one_form_or_none(domain: str, normal: str | None) -> None:
    """Lower case, A-labels, no dot at the end; what is no domain has no form."""
    assert normal_domain(domain) == normal


async def test_name_that_is_none_fails_without_a_question() -> None:
    """Nobody is asked for what cannot be."""
    with NameServer() as server:
        result = await resolver(server).route("a..b")
        assert isinstance(result, Result)
        assert (result.outcome, result.enhanced) == ("failed", "5.1.2")
        assert not server.asked


async def test_address_literal_is_its_own_route() -> None:
    """RFC 5321, 4.1.3; nothing is looked up."""
    with NameServer() as server:
        mx = resolver(server)
        assert await mx.route("[127.0.0.2]") == Route("[127.0.0.2]", (Host("[127.0.0.2]", ("127.0.0.2",)),))
        assert await mx.route("[IPv6:::1]") == Route("[ipv6:::1]", (Host("[ipv6:::1]", ("::1",)),))
        assert not server.asked
    assert literal_address("[IPv6:::1]") == "::1"
    assert literal_address("example.net") is None


async def test_address_literal_that_is_prohibited_or_ours_fails() -> None:
    """It is the shortest way into a network."""
    assert (await refusal("[127.0.0.1]", networks=Networks())).enhanced == "5.4.4"
    assert (await refusal("[IPv6:::ffff:10.0.0.1]")).enhanced == "5.4.4"
    assert (await refusal("[127.0.0.1]", own_addresses=frozenset({"127.0.0.1"}))).enhanced == "5.4.6"


async def test_prohibited_addresses_are_left_out() -> None:
    """Those of a host that also has others, hosts that have no others; a domain that has only such fails."""
    zone = [
        "example.net 300 MX 5 inside.example.net.",
        "example.net 300 MX 9 both.example.net.",
        "inside.example.net 300 A 10.0.0.1",
        "both.example.net 300 A 192.168.0.1",
        "both.example.net 300 A 127.0.0.2",
    ]
    with NameServer(zone) as server:
        route = await resolver(server).route("example.net")
        assert route == Route("example.net", (Host("both.example.net", ("127.0.0.2",), 9),))
        result = await resolver(server, Networks()).route("example.net")
    assert isinstance(result, Result)
    assert (result.outcome, result.enhanced) == ("failed", "5.4.4")
    assert "10.0.0.1" in result.detail


MAIN = ["example.net 300 MX 5 mx1.example.net.", "example.net 300 MX 10 mx2.example.net."]
LAST = "example.net 300 MX 10 mx3.example.net."


async def test_our_own_name_takes_all_hosts_that_are_no_better_out() -> None:
    """RFC 5321, 5.1: the backup hosts would send it back to us; nothing left is a loop."""
    zone = [*MAIN, LAST, A1, A2, A3]
    assert await hosts("example.net", *zone, own_names=frozenset({"MX2.example.net."})) == ["mx1.example.net"]
    result = await refusal("example.net", *zone, own_names=frozenset({"mx1.example.net"}))
    assert (result.outcome, result.enhanced) == ("failed", "5.4.6")
    assert "mx1.example.net" in result.detail


async def test_our_own_address_takes_all_hosts_that_are_no_better_out() -> None:
    """The same where we are known by another name."""
    zone = [*MAIN, LAST, A1, A2, A3]
    assert await hosts("example.net", *zone, own_addresses=frozenset({"127.0.0.3"})) == ["mx1.example.net"]
    assert await hosts("example.net", *zone, own_addresses=frozenset({"127.0.0.2"})) == ["mx1.example.net"]
    result = await refusal("example.net", *zone, own_addresses=frozenset({"127.0.0.1"}))
    assert (result.outcome, result.enhanced) == ("failed", "5.4.6")


async def test_alias_of_our_own_name_is_our_own_host() -> None:
    """An MX record may not name an alias (RFC 2181, 10.3), and many do."""
    zone = [*MAIN, LAST, A1, "mx2.example.net 300 CNAME mail.example.org.", "mail.example.org 300 A 127.0.0.2", A3]
    own_names = frozenset({"mail.example.org"})
    assert await hosts("example.net", *zone, own_names=own_names) == ["mx1.example.net"]
    result = await refusal("example.net", MAIN[1], *zone[4:6], own_names=own_names)
    assert (result.outcome, result.enhanced) == ("failed", "5.4.6")
    assert "mx2.example.net" in result.detail


async def test_implicit_host_that_is_ours_is_a_loop() -> None:
    """Without MX records."""
    zone = ["example.net 300 A 127.0.0.1"]
    assert (await refusal("example.net", *zone, own_names=frozenset({"example.net"}))).enhanced == "5.4.6"
    assert (await refusal("example.net", *zone, own_addresses=frozenset({"127.0.0.1"}))).enhanced == "5.4.6"


async def test_hosts_and_addresses_are_bounded() -> None:
    """At most ten hosts and twenty addresses, those of the best preference."""
    zone = [f"example.net 300 MX {number} mx{number}.example.net." for number in range(40)]
    zone += [f"mx{number}.example.net 300 A 127.0.{number}.{each}" for number in range(40) for each in range(1, 4)]
    with NameServer(zone) as server:
        server.truncates.add("example.net")
        route = await resolver(server).route("example.net")
        assert isinstance(route, Route)
        assert [host.name for host in route.hosts] == [f"mx{number}.example.net" for number in range(7)]
        assert sum(len(host.addresses) for host in route.hosts) == 20
        assert len(server.asked) == 2 + 2 * 10


async def test_mx_that_repeats_a_host_names_it_once() -> None:
    """By its best preference."""
    zone = ["example.net 300 MX 9 mx1.example.net.", "example.net 300 MX 5 MX1.example.net.", A1]
    assert await hosts("example.net", *zone) == ["mx1.example.net"]


async def test_route_is_kept_as_long_as_the_records_say() -> None:
    """The shortest of them; then it is asked for again."""
    clock = Clock()
    with NameServer(["example.net 600 MX 5 mx1.example.net.", "mx1.example.net 60 A 127.0.0.1"]) as server:
        mx = resolver(server, clock=clock)
        for _ in range(3):
            await mx.route("example.net")
        assert server.count("example.net MX") == 1
        clock.now += 59
        await mx.route("EXAMPLE.net.")
        assert server.count("example.net MX") == 1
        clock.now += 2
        await mx.route("example.net")
        assert server.count("example.net MX") == 2


@pytest.mark.parametrize(
    ("zone", "kept", "over"),
    [
        (["example.net 1 A 127.0.0.1"], 29, 31),  # no less than half a minute
        (["example.net 99999 MX 1 mx.example.", "mx.example 99999 A 127.0.0.1"], 3599, 3601),  # no more than an hour
        (["other.example 300 A 127.0.0.1"], 119, 121),  # a domain that does not exist may do so soon
        (["example.net SERVFAIL"], 9, 11),
    ],
)
async def test_time_that_answers_are_kept_is_bounded(zone: list[str], kept: float, over: float) -> None:
    """Whatever a zone says, and also where it says nothing."""
    clock = Clock()
    with NameServer(zone) as server:
        mx = resolver(server, clock=clock)
        await mx.route("example.net")
        clock.now += kept
        await mx.route("example.net")
        assert server.count("example.net MX") == 1
        clock.now = 1000 + over
        await mx.route("example.net")
        assert server.count("example.net MX") == 2


async def test_cache_is_bounded_and_keeps_what_is_used() -> None:
    """The domain that was not asked for longest goes."""
    zone = [f"d{number}.example 300 A 127.0.0.1" for number in range(4)]
    with NameServer(zone) as server:
        mx = resolver(server, cache_domains=3)
        for domain in (
            "d0.example",
            "d1.example",
            "d2.example",
            "d0.example",
            "d3.example",
            "d0.example",
            "d1.example",
        ):
            await mx.route(domain)
        assert server.count("d0.example MX") == 1
        assert server.count("d1.example MX") == 2


async def test_look_up_is_shared_by_all_who_wait_and_outlives_them() -> None:
    """A thousand messages for one domain ask once; one that is cancelled takes the answer from nobody."""
    with NameServer(["example.net 300 A 127.0.0.1"]) as server:
        mx = resolver(server)
        waiting = [asyncio.ensure_future(mx.route("example.net")) for _ in range(1000)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        routes = await asyncio.gather(*waiting[1:])
        assert server.count("example.net MX") == 1
    assert len({id(route) for route in routes}) >= 1
    assert all(isinstance(route, Route) for route in routes)


def test_resolver_works_on_uvloop() -> None:
    """What production runs on has datagrams, too."""
    uvloop = pytest.importorskip("uvloop")
    with NameServer(["example.net 300 MX 5 mx1.example.net.", A1]) as server:
        server.truncates.add("example.net")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

            async def ask() -> Route | Result:
                return await resolver(server).route("example.net")

            assert isinstance(runner.run(ask()), Route)
