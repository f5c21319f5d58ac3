"""
What a reply or a failure means: delivered, deferred or failed; and for whom: the host, the message, one recipient.

The one place where this is decided. What notices a failure (DNS, connection, dialogue, disk) calls a function here and
passes the result on unchanged; log, metrics, DSN and suppression list print and count what is in it.

Three rules stand above all others. What is ours to mend (our address on a block list, our password, our TLS) defers:
an operator has days to mend it, and no app's mail bounces meanwhile. A failure says no more than it knows: what a host
refuses before it has heard of a recipient is no fault of the recipient. And what may have been taken is never sent to
another host at once.

Source: RFC 5321 (3.8, 4.2, 4.5.4, 5.1), RFC 3463 and RFC 5248 (enhanced status codes), RFC 7504 (521, 556), RFC 7505
(null MX).
"""

import re
from enum import StrEnum

from attrs import evolve, field, frozen

from proxy.mail.reply import SERVICE_CLOSING, Reply


class Outcome(StrEnum):
    """What became of a recipient in one attempt."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


class Scope(StrEnum):
    """What a result says something about."""

    HOST = "host"
    MESSAGE = "message"
    RECIPIENT = "recipient"


class Stage(StrEnum):
    """Where an attempt ended; a closed list, fit for a label of a metric."""

    DNS = "dns"
    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"
    STORE = "store"  # a folder of messages, not a host
    HELD = "held"  # nothing was tried: the destination is paused, or has more waiting than it may


_CLASSES = {Outcome.DELIVERED: "2", Outcome.DEFERRED: "4", Outcome.FAILED: "45"}  # 4.4.7 ends what was tried for days


def _fits(result: "Result", _attribute: object, enhanced: str) -> None:
    if not enhanced or enhanced[0] not in _CLASSES[result.outcome]:
        raise ValueError(f"enhanced status code {enhanced} does not fit {result.outcome}")


@frozen
class Result:
    """
    What happened to one recipient in one attempt.

    Args:
        reply: The peer's own words, if it is they that decided.
        enhanced: Enhanced status code, always; of the class that *outcome* asks for, whatever the reply's was.
        detail: For log, record and DSN: what happened, in words; printable ASCII.
        host: Name of the host it is about; empty where none was reached or asked.
        tls: Whether it came over TLS.
        next_host: Whether the next host of the destination is worth trying in the same attempt.
    """

    outcome: Outcome
    scope: Scope
    stage: Stage
    reply: Reply | None
    enhanced: str = field(validator=_fits)
    detail: str
    host: str = ""
    tls: bool = False
    next_host: bool = False

    @property
    def attempted(self) -> bool:
        """Whether anything was tried; if not, the attempt does not count."""
        return self.stage is not Stage.HELD


@frozen
class _Rule:
    """
    One line of the table below; the first that fits counts.

    Args:
        stages: Words of :class:`Stage`, or empty for all.
        codes: Regular expression that the whole reply code must match.
        enhanced: The same for the enhanced status code, which is empty where the peer gave none.
        text: Regular expression to be found in the text.
        alone: Only where the transaction has one recipient, so that a reply to all is one to this.
        status: Enhanced status code, where the peer gave none.
    """

    stages: str
    codes: str
    outcome: Outcome
    scope: Scope
    next_host: bool = False
    enhanced: str = ".*"
    text: str = ""
    alone: bool = False
    status: str = ""

    def fits(self, stage: Stage, reply: Reply, recipients: int) -> bool:
        return (
            (not self.stages or stage in self.stages.split())
            and re.fullmatch(self.codes, str(reply.code)) is not None
            and re.fullmatch(self.enhanced, reply.enhanced) is not None
            and (not self.alone or recipients == 1)
            and (not self.text or re.search(self.text, reply.text, re.IGNORECASE) is not None)
        )


_DELIVERED, _DEFERRED, _FAILED = Outcome
_HOST, _MESSAGE, _RECIPIENT = Scope

_RULES = (
    # "250 2.0.0 Ok: queued as 4WxYz12345": any 2yz to the dot is a promise (RFC 5321, 4.2.5).
    _Rule("dot", "2..", _DELIVERED, _RECIPIENT, status="2.0.0"),
    # "250 2.1.5 Ok", "251 User not local; will forward": so far so good; asked only by who reads all replies alike.
    _Rule("mail rcpt", "2..", _DELIVERED, _RECIPIENT, status="2.1.0"),
    # "421-4.7.0 [192.0.2.1 15] Our system has detected that this message is suspicious" (Gmail): behind the dot 421 is
    # more often about this message than about the host.
    _Rule("dot", str(SERVICE_CLOSING), _DEFERRED, _MESSAGE, next_host=True, status="4.3.2"),
    # RFC 5321, 3.8: 421 may come at any time, and says that the service goes. "421 4.7.0 Try again later, closing
    # connection." (Gmail); "421 4.4.2 mx.example Error: timeout exceeded" (Postfix).
    _Rule("", str(SERVICE_CLOSING), _DEFERRED, _HOST, next_host=True, status="4.3.2"),
    # RFC 7504, 3: "521 mail.example does not accept mail": this host never does, another host of the domain may. Where
    # all say so, the message fails.
    _Rule("banner", "521", _FAILED, _HOST, next_host=True, status="5.3.2"),
    # RFC 5321, 3.1: 554 in place of the greeting, mostly because of who we are: "554 5.7.1 Service unavailable; Client
    # host [192.0.2.1] blocked using zen.spamhaus.org", "554-bad reputation". Postfix defers these, too
    # (smtp_skip_5xx_greeting). What is no greeting at all ("250 hello") is no better.
    _Rule("banner", "...", _DEFERRED, _HOST, next_host=True, status="4.3.2"),
    # "550 5.7.1 HELO name rejected", "450 4.7.1 <localhost>: Helo command rejected: Host not found".
    _Rule("ehlo", "...", _DEFERRED, _HOST, next_host=True, status="4.5.0"),
    # RFC 3207, 4: "454 4.7.0 TLS not available due to local problem"; it matters only where TLS is required.
    _Rule("starttls", "...", _DEFERRED, _HOST, next_host=True, status="4.7.4"),
    # RFC 4954, 6: "535 5.7.8 Authentication credentials invalid". A wrong password is the operator's, not the app's.
    _Rule("auth", "...", _DEFERRED, _HOST, next_host=True, status="4.7.8"),
    # RFC 3207, 4: "530 5.7.0 Must issue a STARTTLS command first"; RFC 4954, 6: "530 5.7.0 Authentication required".
    _Rule("mail rcpt data dot", "53[0458]", _DEFERRED, _HOST, next_host=True, status="4.7.0"),
    # An answer that is none: 3yz to MAIL or RCPT, 250 instead of 354. The connection is out of step.
    _Rule("mail rcpt data", "[23]..", _DEFERRED, _HOST, next_host=True, status="4.5.0"),
    # 354 to the dot: it may have been taken, so it goes nowhere else now.
    _Rule("dot", "3..", _DEFERRED, _MESSAGE, status="4.5.0"),
    # "452 4.2.2 Mailbox full", "552 5.2.2 <ann@example.net>: user is over quota", "452-4.2.2 The recipient's inbox is
    # out of storage space" (Gmail). A quota changes within days, and the next host asks the same mailbox.
    _Rule("rcpt", "[45]..", _DEFERRED, _RECIPIENT, enhanced="[45]\\.2\\.2", status="4.2.2"),
    _Rule("data dot", "[45]..", _DEFERRED, _RECIPIENT, enhanced="[45]\\.2\\.2", alone=True, status="4.2.2"),
    # RFC 5321, 4.5.3.1.10: "452 4.5.3 Too many recipients"; old servers say 552, which is to be taken for 452. The
    # rest goes in a transaction of its own.
    _Rule("rcpt", "[45]..", _DEFERRED, _RECIPIENT, enhanced="[45]\\.5\\.3", status="4.5.3"),
    _Rule("rcpt", "[45]52", _DEFERRED, _RECIPIENT, text="too many recipients", status="4.5.3"),
    _Rule("rcpt", "552", _DEFERRED, _RECIPIENT, status="4.2.2"),
    # RFC 5321, 5.1: each host is tried until one takes the message. "450 4.2.0 <ann@example.net>: Recipient address
    # rejected: Greylisted", "451 4.7.1 Greylisting in action", "450 4.1.2 Domain not found".
    _Rule("rcpt", "4..", _DEFERRED, _RECIPIENT, next_host=True),
    # "550 5.1.1 <bob@example.net>: Recipient address rejected: User unknown", "550 5.7.1 Relaying denied",
    # "553 5.1.3 Bad recipient address syntax". For good, and another host of the domain would only bounce it later.
    _Rule("rcpt", "5..", _FAILED, _RECIPIENT),
    # "452 4.3.1 Insufficient system storage", "451 4.3.0 Error: queue file write error", "450 4.1.8 Sender address
    # rejected: Domain not found".
    _Rule("mail data dot", "4..", _DEFERRED, _MESSAGE, next_host=True),
    # "554 delivery error: dd This user doesn't have a yahoo.com account [0]", "550 5.1.1 mailbox unavailable": servers
    # that look at the mailbox only after the dot. With one recipient the reply is about it.
    _Rule("data dot", "5..", _FAILED, _RECIPIENT, enhanced="5\\.[12]\\..*", alone=True),
    # "552 5.3.4 Message size exceeds fixed limit", "554 5.7.1 Spam message rejected", "550 5.7.26 This mail has been
    # blocked because the sender is unauthenticated" (Gmail), "550 5.6.0 Lone CR in headers".
    _Rule("mail data dot", "5..", _FAILED, _MESSAGE),
)

# For peers without ENHANCEDSTATUSCODES: what RFC 5321, 4.2.3 says of the code, in the words of RFC 3463.
_BY_CODE = {
    450: "4.2.0",
    451: "4.3.0",
    452: "4.3.1",
    455: "4.5.4",
    500: "5.5.2",
    501: "5.5.4",
    502: "5.5.1",
    503: "5.5.1",
    504: "5.5.4",
    550: "5.2.0",
    551: "5.1.6",
    552: "5.3.4",
    553: "5.1.3",
    555: "5.5.4",
    556: "5.1.10",
}
_BY_STAGE = {(Stage.MAIL, 550): "5.1.0", (Stage.MAIL, 553): "5.1.7", (Stage.MAIL, 450): "4.1.0"}
_MESSAGE_CODES = {550: "5.6.0", 553: "5.6.0"}  # to DATA and the dot, which are not about addresses
_MAX_TEXT = 1000
_COMMANDS = {
    Stage.BANNER: "instead of a greeting",
    Stage.EHLO: "to EHLO",
    Stage.STARTTLS: "to STARTTLS",
    Stage.AUTH: "to AUTH",
    Stage.MAIL: "to MAIL",
    Stage.RCPT: "to RCPT",
    Stage.DATA: "to DATA",
    Stage.DOT: "to the message",
}


def of_reply(stage: Stage, reply: Reply, host: str, *, tls: bool = False, recipients: int = 1) -> Result:
    """
    Sort a reply.

    Args:
        stage: What it answers; ``banner`` to ``dot``.
        host: Who said it.
        recipients: How many recipients of the transaction it is for; matters behind RCPT.

    Raises:
        ValueError: A reply that is as it should be at this stage (220 as greeting, 354 to DATA) is no outcome, and
            neither is one at ``dns``, ``connect``, ``store`` or ``held``.
    """
    if stage not in _COMMANDS or (stage is Stage.DATA and reply.code == 354):
        raise ValueError(f"{reply.code} at {stage} is no outcome")
    rule = next(rule for rule in _RULES if rule.fits(stage, reply, recipients))
    if len(reply.text) > _MAX_TEXT:  # a reply may have 48 kB, and this is kept for each recipient
        reply = evolve(reply, text=f"{reply.text[:_MAX_TEXT]}...")
    return Result(
        rule.outcome,
        rule.scope,
        stage,
        reply,
        _enhanced(rule, stage, reply),
        f"{host or 'the next hop'} said {reply} {_COMMANDS[stage]}",
        host,
        tls,
        rule.next_host,
    )


def _enhanced(rule: _Rule, stage: Stage, reply: Reply) -> str:
    digit = {Outcome.DELIVERED: "2", Outcome.DEFERRED: "4", Outcome.FAILED: "5"}[rule.outcome]
    given = reply.enhanced or rule.status or _BY_STAGE.get((stage, reply.code), "")
    if not given and stage in (Stage.DATA, Stage.DOT):
        given = _MESSAGE_CODES.get(reply.code, "")
    given = given or _BY_CODE.get(reply.code, "0.0.0")
    return digit + given[1:]


def too_many_recipients(result: Result) -> bool:
    """Whether the host takes this recipient in another transaction, at once (RFC 5321, 4.5.3.1.10)."""
    return result.stage is Stage.RCPT and result.enhanced == "4.5.3"


# Failures without a reply


def unreachable(host: str, reason: str) -> Result:
    """No TCP connection. RFC 3463, X.4.1: no answer from host."""
    detail = f"cannot connect to {host}: {reason}"
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.CONNECT, None, "4.4.1", detail, host, next_host=True)


def crowded(host: str) -> Result:
    """We have as many connections to this host as we may; another host may be free. RFC 3463, X.4.5: congestion."""
    detail = f"not connected to {host}: it has as many connections from here as one host may have"
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.CONNECT, None, "4.4.5", detail, host, next_host=True)


def lost(stage: Stage, host: str, reason: str, *, tls: bool = False) -> Result:
    """
    The connection was lost, or no reply came in time, before the final dot. RFC 3463, X.4.2: bad connection.

    Nothing was taken: without its dot a message is none (RFC 5321, 4.1.1.4).
    """
    detail = f"lost {host} {_waiting(stage)}: {reason}"
    return Result(Outcome.DEFERRED, Scope.HOST, stage, None, "4.4.2", detail, host, tls, next_host=True)


def may_have_been_taken(host: str, reason: str, *, tls: bool = False) -> Result:
    """
    The final dot was sent, and no reply came: the one window in which SMTP may deliver twice (RFC 5321, 4.5.3.2.6).

    It is tried again later and not at the next host at once, since a host that was only slow has it by then.
    """
    detail = f"may have been taken: lost {host} after the final dot: {reason}"
    return Result(Outcome.DEFERRED, Scope.MESSAGE, Stage.DOT, None, "4.4.2", detail, host, tls)


def _waiting(stage: Stage) -> str:
    return {Stage.BANNER: "before its greeting", Stage.DOT: "inside the message"}.get(stage, f"at {stage.upper()}")


def no_such_domain(domain: str) -> Result:
    """NXDOMAIN. RFC 3463, X.1.2: bad destination system address."""
    return _no_route(Outcome.FAILED, Scope.RECIPIENT, "5.1.2", f"the domain {domain} does not exist")


def bad_domain(domain: str) -> Result:
    """What stands behind the @ can be no domain name and no address. RFC 3463, X.1.2."""
    return _no_route(Outcome.FAILED, Scope.RECIPIENT, "5.1.2", f"{domain!a} is no domain name")


def bad_sender(address: str) -> Result:
    """The reverse-path can be no address, so no host would take it. RFC 3463, X.1.7: bad sender's address syntax."""
    detail = f"{address[:255]!a} is no address to send from"
    return Result(Outcome.FAILED, Scope.MESSAGE, Stage.MAIL, None, "5.1.7", detail)


def null_mx(domain: str) -> Result:
    """The domain says that it takes no mail. RFC 7505, 4.1: 5.1.10, recipient address has null MX."""
    return _no_route(Outcome.FAILED, Scope.RECIPIENT, "5.1.10", f"the domain {domain} takes no mail (null MX)")


def no_address(domain: str) -> Result:
    """
    The domain exists, and none of its mail hosts has an address. RFC 3463, X.4.4: unable to route.

    Not 5.1.2: hosts without addresses are a slip in a zone, which does not make the address a bad one for ever.
    """
    return _no_route(Outcome.FAILED, Scope.HOST, "5.4.4", f"no mail host of {domain} has an address")


def dns_trouble(domain: str, reason: str) -> Result:
    """SERVFAIL, REFUSED or no answer from any name server. RFC 3463, X.4.3: directory server failure."""
    return _no_route(Outcome.DEFERRED, Scope.HOST, "4.4.3", f"looking up {domain} failed: {reason}")


def loop(domain: str, host: str) -> Result:
    """We are the domain's best host, so it would come back here. RFC 5321, 5.1; RFC 3463, X.4.6: routing loop."""
    return _no_route(Outcome.FAILED, Scope.HOST, "5.4.6", f"mail for {domain} would come back to this host ({host})")


def prohibited(domain: str, address: str) -> Result:
    """
    Every address of the domain is private, loopback, multicast or otherwise not on the Internet.

    Whoever writes a recipient must not choose a host inside this network to be spoken to. RFC 3463, X.4.4.
    """
    detail = f"mail for {domain} leads to {address}, which is not allowed as a destination"
    return _no_route(Outcome.FAILED, Scope.HOST, "5.4.4", detail)


def _no_route(outcome: Outcome, scope: Scope, enhanced: str, detail: str) -> Result:
    return Result(outcome, scope, Stage.DNS, None, enhanced, detail)


def tls_not_offered(host: str) -> Result:
    """TLS is required for this destination, and the host offers none. RFC 3463, X.7.4."""
    detail = f"{host} offers no STARTTLS, and TLS is required for this destination"
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.STARTTLS, None, "4.7.4", detail, host, next_host=True)


def tls_failed(host: str, reason: str) -> Result:
    """The TLS handshake failed, or its certificate is not good, where TLS is required. RFC 3463, X.7.5."""
    detail = f"TLS with {host} failed: {reason}"
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.STARTTLS, None, "4.7.5", detail, host, next_host=True)


def no_auth(host: str, reason: str) -> Result:
    """The smarthost offers no AUTH that we know. RFC 3463, X.7.4; the operator's to mend."""
    detail = f"AUTH at {host} is not possible: {reason}"
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.AUTH, None, "4.7.4", detail, host, next_host=True)


def too_large(host: str, octets: int, limit: int, *, tls: bool = False) -> Result:
    """The message is larger than the SIZE that the host offers. RFC 1870, 6.1; RFC 3463, X.3.4."""
    detail = f"the message of {octets} octets is larger than the {limit} that {host} takes"
    return Result(Outcome.FAILED, Scope.MESSAGE, Stage.MAIL, None, "5.3.4", detail, host, tls)


def no_smtputf8(host: str, *, tls: bool = False) -> Result:
    """An address or header needs SMTPUTF8, and the host lacks it. RFC 6531, 3.5; another host may have it."""
    detail = f"{host} does not take internationalized addresses (SMTPUTF8)"
    return Result(Outcome.FAILED, Scope.MESSAGE, Stage.MAIL, None, "5.6.7", detail, host, tls, next_host=True)


def no_eight_bit(host: str, *, tls: bool = False) -> Result:
    """Octets above 127 that cannot be encoded, and a host without 8BITMIME. RFC 6152, 3; RFC 3463, X.6.3."""
    detail = f"{host} does not take 8-bit messages (8BITMIME)"
    return Result(Outcome.FAILED, Scope.MESSAGE, Stage.MAIL, None, "5.6.3", detail, host, tls, next_host=True)


def stored(detail: str) -> Result:
    """A message lies in its folder, synced."""
    return Result(Outcome.DELIVERED, Scope.RECIPIENT, Stage.STORE, None, "2.0.0", detail)


def disk_full(detail: str) -> Result:
    """The folder's disk or quota has no room. RFC 3463, X.3.1: mail system full."""
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.STORE, None, "4.3.1", f"no room to store the message: {detail}")


def not_stored(detail: str) -> Result:
    """The folder cannot be written for another reason: rights, a volume that went away. RFC 3463, X.3.0."""
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.STORE, None, "4.3.0", f"cannot store the message: {detail}")


def held(last: Result | None, detail: str) -> Result:
    """
    Nothing was tried, because the destination failed a moment ago or is busy.

    Args:
        last: The failure that it is held for, if it is.
    """
    if last is None:
        return Result(Outcome.DEFERRED, Scope.HOST, Stage.HELD, None, "4.3.2", detail)
    enhanced = f"4{last.enhanced[1:]}"
    return Result(Outcome.DEFERRED, Scope.HOST, Stage.HELD, last.reply, enhanced, f"{detail}: {last.detail}", last.host)


# Results of several hosts, of several attempts, and what follows for an address


def settle(earlier: Result | None, later: Result) -> Result:
    """
    Join what two hosts of one attempt say about a recipient.

    A word about the recipient or the message counts more than one about a host, and a host that may work tomorrow more
    than one that never will: a domain has failed when each of its hosts has.
    """
    if earlier is None or later.outcome is Outcome.DELIVERED or later.scope is not Scope.HOST:
        return later
    if earlier.scope is not Scope.HOST:
        return earlier
    if earlier.outcome is Outcome.DEFERRED and later.outcome is Outcome.FAILED and later.next_host:
        return earlier
    return later


def expired(last: Result | None) -> Result:
    """
    Give up on a recipient whose time is over. RFC 3463, X.4.7: delivery time expired.

    RFC 3464 keeps the class 4 for this: it was never refused for good.
    """
    if last is None:
        return Result(Outcome.FAILED, Scope.RECIPIENT, Stage.HELD, None, "4.4.7", "not delivered in time")
    detail = f"not delivered in time; at last: {last.detail}"
    return evolve(last, outcome=Outcome.FAILED, enhanced="4.4.7", detail=detail, next_host=False)


_HARD = frozenset({"5.1.1", "5.1.2", "5.1.6", "5.1.10"})
_ABOUT_ADDRESS = frozenset({Stage.DNS, Stage.RCPT, Stage.DATA, Stage.DOT})


def is_hard_bounce(result: Result) -> bool:
    """
    Whether the address is bad for good, so that later messages to it need not be tried.

    Only where an enhanced status code says so, and says it of one recipient: "550 5.1.1 User unknown", "550 5.1.6
    Mailbox has moved", NXDOMAIN, null MX. Never for policy (5.7.x: block lists, relaying denied), content or sender
    reasons. A bare "550 No such user here" does not count: the same words without a code are said to senders whose
    reputation is bad, and a good address that is suppressed hurts more than a bad one that is tried twice. For the same
    reason "550 5.4.1 Recipient address rejected: Access denied" (Exchange Online) and 5.2.1 (disabled) do not count.
    """
    if result.outcome is not Outcome.FAILED or result.scope is not Scope.RECIPIENT:
        return False
    if result.stage not in _ABOUT_ADDRESS:
        return False
    return (result.reply.enhanced if result.reply is not None else result.enhanced) in _HARD
