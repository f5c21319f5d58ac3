"""
One attempt to deliver a message to one destination: hosts in order, copies in turn, a result for each recipient.

* A connection at rest comes first. If it turns out dead, its host is tried again like any other.
* Then the hosts in order. The next one gets only those recipients whose result says that it is worth it, and at most
  two hosts are talked to: a message must not be carried around all hosts of a domain that does not want it.
* What may have been taken goes to no other host in the same attempt.

Source: RFC 5321, 4.5.4.1 and 5.1.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from proxy.outbound.mx import Host, Route
from proxy.outbound.transaction import Mail, Part, Patience, Session, body_of
from proxy.policy import outcome
from proxy.policy.outcome import Outcome, Result, Scope


class Hosts(Protocol):
    """Where connections for one destination come from."""

    async def route(self) -> Route | Result:
        """The hosts in the order to be tried."""

    async def open(self, host: Host, tried: set[str]) -> Session | Result:
        """
        Get ready to send to one host.

        Args:
            tried: Addresses not to use again; those that were used are added.
        """


async def attempt(mail: Mail, hosts: Hosts, session: Session | None, patience: Patience) -> "Attempt":
    """
    Try to deliver, once.

    Args:
        mail: All recipients are of the one destination that *hosts* stands for.
        session: A connection at rest; None to open one. It is the attempt's to close from now on.

    Returns:
        The results, and a session for another message, if one is left.
    """
    work = Attempt(mail, patience)
    try:
        if session is not None and await work.resumed(session):
            return work
        await work.over_hosts(hosts)
    except BaseException:
        if work.session is not None:
            work.session.connection.close()
        raise
    return work


class Attempt:
    """
    An attempt and what came of it.

    Attributes:
        results: For each recipient.
        session: A session that is of more use; None if there is none.
    """

    def __init__(self, mail: Mail, patience: Patience) -> None:
        self.results: dict[str, Result] = {}
        self.session: Session | None = None
        self._mail = mail
        self._patience = patience
        self._talked_to = ""  # the address of a reused session that is in order, but did not settle everything
        self._pending = []
        if not mail.reverse_path.isprintable():  # such as octets that are no UTF-8
            self.results = dict.fromkeys(mail.recipients, outcome.bad_sender(mail.reverse_path))
            return
        for copy in mail.copies:
            # What is no address is never written into a command; the grammar of RCPT lets none of these in.
            good = tuple(dict.fromkeys(each for each in copy.recipients if each.isprintable()))
            for each in set(copy.recipients).difference(good):
                self.results[each] = outcome.bad_domain(each.rpartition("@")[2][:255])
            if good:
                self._pending.append(Part(good, body_of(copy.content, copy.in_seven_bits)))

    @property
    def host_failed(self) -> Result | None:
        """What was wrong with the destination itself, if that is all that can be said of this attempt."""
        about_host = [
            each for each in self.results.values() if each.scope is Scope.HOST and each.outcome is Outcome.DEFERRED
        ]
        return about_host[-1] if about_host and len(about_host) == len(self.results) else None

    async def resumed(self, session: Session) -> bool:
        """Send over a connection that was at rest; whether that settled everything."""
        session.reused = True
        self.session = session
        await self._send_all(session)
        if session.usable:
            self._talked_to = session.address
        else:
            self.session = None  # it may have died at rest, so its host is tried again like any other
        return not self._open()

    async def over_hosts(self, hosts: Hosts) -> None:
        """Go through the hosts as far as there is reason to."""
        await self._let_go()
        route = await hosts.route()
        if isinstance(route, Result):
            self._record(self._open(), route)
            return
        talked = 1 if self._talked_to else 0
        now = asyncio.get_running_loop().time
        until = now() + self._patience.attempt_seconds
        for host in route.hosts:
            tried = {self._talked_to}.intersection(host.addresses)
            while pending := self._open():
                if talked >= self._patience.hosts or tried.issuperset(host.addresses) or now() > until:
                    break
                opened = await hosts.open(host, tried)
                if isinstance(opened, Result):
                    self._record(pending, opened)
                    continue
                self.session = opened
                settled = await self._send_all(opened)
                if not opened.usable:
                    self.session = None
                if settled and not opened.usable:
                    tried.discard(opened.address)  # it closes after a message or some: that is progress, so once more
                else:
                    talked += 1
                if not self._open():
                    return
                await self._let_go()
                if not self._wanting(host):
                    break
            if talked >= self._patience.hosts:
                return

    def _wanting(self, host: Host) -> bool:
        """Whether other addresses of the same host may help: only where the trouble was with the address tried."""
        return any(self._result(each).scope is Scope.HOST for part in self._open() for each in part.recipients)

    async def _let_go(self) -> None:
        if self.session is not None:
            self.session.connection.quit()
            self.session = None

    def _result(self, recipient: str) -> Result:
        return self.results[recipient]

    def _open(self) -> list[Part]:
        """The parts of what is pending that the next host may take."""
        parts = []
        for part in self._pending:
            left = tuple(each for each in part.recipients if each not in self.results or self._result(each).next_host)
            if left:
                parts.append(part if left == part.recipients else Part(left, part.body))
        return parts

    async def _send_all(self, session: Session) -> bool:
        """Send all that is open over one session; whether it settled anything by its word."""
        queue = deque(self._open())
        settled = False
        while queue and session.usable:
            part = queue.popleft()
            got = await session.send(self._mail, part)
            for recipient, result in got.items():
                self.results[recipient] = outcome.settle(self.results.get(recipient), result)
            taken = any(each.outcome is Outcome.DELIVERED for each in got.values())
            again = tuple(each for each, result in got.items() if outcome.too_many_recipients(result))
            if taken and again:
                queue.appendleft(Part(again, part.body))
            settled = settled or any(
                each.reply is not None and each.scope is not Scope.HOST and not each.next_host for each in got.values()
            )
        if queue:
            self._record(queue, session.over())
        return settled

    def _record(self, parts: Iterable[Part], result: Result) -> None:
        for part in parts:
            for recipient in part.recipients:
                self.results[recipient] = outcome.settle(self.results.get(recipient), result)
