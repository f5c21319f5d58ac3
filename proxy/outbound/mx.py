"""
Where mail for a domain goes: MX records, implicit MX, address literals; in the order to be tried.

Look-ups are shared: one at a time for a domain, kept as long as the DNS says, within bounds. Only name servers decide
whether a domain exists; what cannot be found out at the moment is tried again.

Trust: names and addresses come from whoever owns the recipient's domain. Their number is bounded, the addresses are
held against :class:`~proxy.outbound.networks.Networks`, and a domain that leads back to this host is refused.
Source: RFC 5321, 5.1 and 2.3.5; RFC 7505 (null MX); RFC 5891 and UTS 46 (IDNA); RFC 2308 (negative answers).
"""

import asyncio
import itertools
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from time import monotonic

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from attrs import evolve, frozen
from dns.rdtypes.ANY.MX import MX

from proxy.outbound.networks import Networks, plain
from proxy.policy import outcome
from proxy.policy.outcome import Result

MAX_HOSTS = 10
MAX_ADDRESSES = 20
_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")  # the DNS allows any octet; mail hosts are named like this
_MAX_ALIASES = 8
_MIN_TTL_SECONDS = 30.0
_MAX_TTL_SECONDS = 3600.0
_NEGATIVE_SECONDS = 120.0  # a domain just set up must not be dead for the hours that its SOA record may say
_TROUBLE_SECONDS = 10.0  # so that a thousand messages for it do not ask a name server that is out of order
_MAX_LOOKUPS = 100


@frozen
class Host:
    """
    A host that takes mail for a domain.

    Args:
        name: Its name, lower case; for an address literal the literal.
        addresses: IP addresses, IPv6 and IPv4 in turn. None are prohibited.
        preference: Of its MX record: the lowest is tried first.
    """

    name: str
    addresses: tuple[str, ...]
    preference: int = 0


@frozen
class Route:
    """The hosts of a domain, in the order to be tried; never empty."""

    domain: str
    hosts: tuple[Host, ...]


@frozen
class ResolverSettings:
    """
    Whom to ask, and how patiently.

    Args:
        nameservers: IP addresses; empty for those of the system (/etc/resolv.conf).
        port: Of these name servers.
        timeout_seconds: For one question to one name server.
        lifetime_seconds: For one question to all of them.
        cache_domains: Domains that are kept at most.
        own_names: Names by which others know this host: an MX record that has one leads back here.
        own_addresses: Its public IP addresses, for the same reason.
    """

    nameservers: tuple[str, ...] = ()
    port: int = 53
    timeout_seconds: float = 5
    lifetime_seconds: float = 20
    cache_domains: int = 10_000
    own_names: frozenset[str] = frozenset()
    own_addresses: frozenset[str] = frozenset()


@frozen
class _Found:
    """What is kept: hosts in order of preference, or why there are none."""

    answer: tuple[Host, ...] | Result
    expires: float


class _Nothing(Exception):
    def __init__(self, result: Result, seconds: float) -> None:
        super().__init__(result.detail)
        self.result = result
        self.seconds = seconds


class Resolver:
    """
    Finds routes; one for each process.

    Args:
        networks: Which addresses may be used.
        shuffle: For hosts of the same preference (RFC 5321, 5.1: the load is to be spread).
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        settings: ResolverSettings,
        networks: Networks,
        shuffle: random.Random,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._networks = networks
        self._shuffle = shuffle
        self._clock = clock
        self._limit = settings.cache_domains
        self._own_names = frozenset(name.rstrip(".").lower() for name in settings.own_names)
        self._own_addresses = frozenset(map(plain, settings.own_addresses)) - {None}
        self._cache: OrderedDict[str, _Found] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[_Found]] = {}
        self._turns = asyncio.Semaphore(_MAX_LOOKUPS)
        self._dns = dns.asyncresolver.Resolver(configure=not settings.nameservers)
        if settings.nameservers:
            self._dns.nameservers = list(settings.nameservers)
            self._dns.port = settings.port
        self._dns.timeout = settings.timeout_seconds
        self._dns.lifetime = settings.lifetime_seconds

    async def route(self, domain: str) -> Route | Result:
        """
        Find the hosts for a domain.

        Args:
            domain: What stands behind the @: a name, with U-labels or A-labels, or an address literal.

        Returns:
            The route, or the result for every recipient in that domain.
        """
        name = normal_domain(domain)
        if name is None:
            return outcome.bad_domain(domain[:255])
        if name.startswith("["):
            return self._literal(name)
        found = self._cache.get(name)
        if found is None or found.expires <= self._clock():
            found = await self._shared(name)
        else:
            self._cache.move_to_end(name)
        if isinstance(found.answer, Result):
            return found.answer
        return Route(name, self._in_order(found.answer))

    def _in_order(self, hosts: tuple[Host, ...]) -> tuple[Host, ...]:
        if len(hosts) == 1:
            return hosts
        ordered: list[Host] = []
        for _, group in itertools.groupby(hosts, lambda host: host.preference):
            equals = list(group)
            self._shuffle.shuffle(equals)
            ordered += equals
        return tuple(ordered)

    def _literal(self, name: str) -> Route | Result:
        address = literal_address(name)
        if address is None:
            return outcome.bad_domain(name)
        if plain(address) in self._own_addresses:
            return outcome.loop(name, address)
        if not self._networks.permit(address):
            return outcome.prohibited(name, address)
        return Route(name, (Host(name, (address,)),))

    async def _shared(self, name: str) -> _Found:
        """Look up a domain once, however many wait for it; who stops waiting does not stop the others."""
        task = self._under_way.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._look_up(name))
            self._under_way[name] = task
            task.add_done_callback(lambda _: self._under_way.pop(name, None))
        return await asyncio.shield(task)

    async def _look_up(self, name: str) -> _Found:
        answer: tuple[Host, ...] | Result
        async with self._turns:
            try:
                answer, seconds = await self._hosts(name)
            except _Nothing as nothing:
                answer, seconds = nothing.result, nothing.seconds
        found = _Found(answer, self._clock() + seconds)
        self._cache[name] = found
        self._cache.move_to_end(name)
        while len(self._cache) > self._limit:
            self._cache.popitem(last=False)
        return found

    async def _hosts(self, domain: str) -> tuple[tuple[Host, ...], float]:
        named, ttl = await self._mail_hosts(domain)
        named = self._without_own_names(domain, named)[:MAX_HOSTS]
        looked_up = await asyncio.gather(*(self._addresses(domain, host.name) for host in named))
        hosts: list[Host] = []
        trouble: Result | None = None
        refused = ""
        left = MAX_ADDRESSES
        for host, (addresses, seconds, is_own) in zip(named, looked_up, strict=True):
            if isinstance(addresses, Result):
                trouble = addresses
                continue
            if is_own or any(plain(address) in self._own_addresses for address in addresses):
                # We are one of the hosts: all that are no better than we would send it back to us (RFC 5321, 5.1).
                hosts = [each for each in hosts if each.preference < host.preference]
                if not hosts:
                    raise _Nothing(outcome.loop(domain, host.name), _NEGATIVE_SECONDS)
                break
            permitted = tuple(address for address in addresses if self._networks.permit(address))[:left]
            refused = refused or next((each for each in addresses if not self._networks.permit(each)), "")
            if permitted:
                left -= len(permitted)
                ttl = min(ttl, seconds)
                hosts.append(evolve(host, addresses=permitted))
        if hosts:
            return tuple(hosts), max(_MIN_TTL_SECONDS, min(ttl, _MAX_TTL_SECONDS))
        if trouble is not None:  # the one host that can be used may be the one that was not found out about
            raise _Nothing(trouble, _TROUBLE_SECONDS)
        nothing = outcome.prohibited(domain, refused) if refused else outcome.no_address(domain)
        raise _Nothing(nothing, _NEGATIVE_SECONDS)

    async def _mail_hosts(self, domain: str) -> tuple[list[Host], float]:
        """The names in the MX records, best first; without any, the domain itself (RFC 5321, 5.1: implicit MX)."""
        name = domain
        ttl = _MAX_TTL_SECONDS
        for _ in range(_MAX_ALIASES):
            answer = await self._ask(domain, name, dns.rdatatype.MX)
            ttl = min(ttl, answer.chaining_result.minimum_ttl)
            records = [record for record in answer.rrset or () if isinstance(record, MX)]
            if records:
                return _named(domain, records), ttl
            # A name server for one domain only gives an alias without following it out of the domain.
            target = _text(answer.canonical_name)
            if target == name:
                return [Host(name, ())], ttl
            name = target
        raise _Nothing(outcome.dns_trouble(domain, "too many aliases in a row"), _TROUBLE_SECONDS)

    def _without_own_names(self, domain: str, hosts: list[Host]) -> list[Host]:
        own = next((host for host in hosts if host.name in self._own_names), None)
        if own is None:
            return hosts
        better = [host for host in hosts if host.preference < own.preference]
        if not better:
            raise _Nothing(outcome.loop(domain, own.name), _NEGATIVE_SECONDS)
        return better

    async def _addresses(self, domain: str, name: str) -> tuple[list[str] | Result, float, bool]:
        """
        Find the addresses of a host.

        Returns:
            IPv6 and IPv4 addresses, in turn, empty if it has none, or a result if that cannot be found out; for how
            many seconds that holds; whether the name is an alias of this host.
        """
        found: list[list[str]] = []
        ttl = _MAX_TTL_SECONDS
        trouble: Result | None = None
        is_own = False
        kinds = (dns.rdatatype.AAAA, dns.rdatatype.A)
        for answer in await asyncio.gather(*(self._ask(domain, name, kind) for kind in kinds), return_exceptions=True):
            if isinstance(answer, _Nothing):
                # A host that does not exist has no addresses, and so has one whose zone knows no AAAA. Neither says
                # anything about the domain; it is for the caller to see whether other hosts are left.
                trouble = trouble or (answer.result if answer.result.outcome is outcome.Outcome.DEFERRED else None)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.rrset is not None:
                found.append([str(record) for record in answer.rrset])
                is_own = is_own or _text(answer.canonical_name) in self._own_names
                ttl = min(ttl, answer.chaining_result.minimum_ttl)
        if not found and trouble is not None:
            return trouble, _TROUBLE_SECONDS, False
        turns = itertools.zip_longest(*found)
        return [address for turn in turns for address in turn if address is not None], ttl, is_own

    async def _ask(self, domain: str, name: str, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer:
        try:
            return await self._dns.resolve(
                dns.name.from_text(name), kind, search=False, raise_on_no_answer=False, lifetime=self._dns.lifetime
            )
        except dns.resolver.NXDOMAIN:
            raise _Nothing(outcome.no_such_domain(domain), _NEGATIVE_SECONDS) from None
        except dns.resolver.LifetimeTimeout:
            reason = f"no answer within {self._dns.lifetime:g} s"
            raise _Nothing(outcome.dns_trouble(domain, reason), _TROUBLE_SECONDS) from None
        except dns.resolver.NoNameservers as error:
            raise _Nothing(outcome.dns_trouble(domain, _why(error)), _TROUBLE_SECONDS) from None
        except (dns.exception.DNSException, OSError) as error:
            raise _Nothing(outcome.dns_trouble(domain, type(error).__name__), _TROUBLE_SECONDS) from None


def _named(domain: str, records: Sequence[MX]) -> list[Host]:
    """Read MX records; a lone ``.`` says that the domain takes no mail (RFC 7505, 3), among others it says nothing."""
    best: dict[str, int] = {}
    for record in records:
        name = _text(record.exchange)
        if name and _HOST_NAME.fullmatch(name):
            best[name] = min(record.preference, best.get(name, record.preference))
    if not best:
        null = all(record.exchange == dns.name.root for record in records)
        raise _Nothing(outcome.null_mx(domain) if null else outcome.no_address(domain), _NEGATIVE_SECONDS)
    return sorted((Host(name, (), preference) for name, preference in best.items()), key=lambda host: host.preference)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _why(error: dns.resolver.NoNameservers) -> str:
    """What the name servers said: the last word of each, such as SERVFAIL."""
    errors: Collection[tuple[object, ...]] = error.kwargs.get("errors", ())
    said = {str(each[3])[:80] or type(each[3]).__name__ for each in errors}
    return ", ".join(sorted(said)) or "no name server can be used"


@lru_cache(4096)  # asked for every recipient, and again for every command
def normal_domain(domain: str) -> str | None:
    """
    Bring a domain into the one form that is looked up and compared: A-labels in lower case, no dot at the end.

    Returns:
        The name; an address literal in lower case; None for what is neither.
    """
    if domain.startswith("["):
        return domain.lower() if literal_address(domain) is not None else None
    if not domain or len(domain) > 1000:
        return None
    try:
        if domain.isascii():
            name = dns.name.from_text(domain)
        else:
            name = dns.name.from_unicode(domain, idna_codec=dns.name.IDNA_2008_Practical)
    except (dns.exception.DNSException, UnicodeError):
        return None
    text = _text(name)
    return text if _HOST_NAME.fullmatch(text) else None


def literal_address(literal: str) -> str | None:
    """Give the IP address in a literal such as ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]`` (RFC 5321, 4.1.3)."""
    if not literal.startswith("[") or not literal.endswith("]"):
        return None
    inner = literal[1:-1]
    version = 4
    if inner[:5].lower() == "ipv6:":
        inner, version = inner[5:], 6
    if "%" in inner or (":" in inner) != (version == 6):
        return None
    return inner if plain(inner) is not None else None
