"""
A name server on script: UDP and TCP on loopback, with zones as a test writes them.

A thread for each transport, blocking sockets: what it answers is exactly what the zone says.
"""

import socket
import struct
import threading
from collections.abc import Iterable
from types import TracebackType

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

SERVFAIL = "SERVFAIL"
REFUSED = "REFUSED"
SILENT = "silent"
"""In place of records: an error, or no answer at all."""


class NameServer:
    """
    A scripted name server; use it as a context manager.

    Args:
        zone: Lines of name, TTL, type and data, such as ``example.net 300 MX 10 mx.example.net.``; or a name and one
            of the words above, which may be followed by a type it is limited to. Names that are in no line do not
            exist.
        follows: Whether an alias is answered together with what it stands for, as resolvers do.

    Attributes:
        asked: The questions so far, such as ``example.net MX udp``.
        truncates: Names whose answers do not fit into UDP.
    """

    def __init__(self, zone: Iterable[str] = (), *, follows: bool = True) -> None:
        self.asked: list[str] = []
        self.truncates: set[str] = set()
        self._follows = follows
        self._records: dict[tuple[str, str], list[str]] = {}
        self._trouble: dict[tuple[str, str], str] = {}
        self.load(zone)
        self._stopped = threading.Event()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._bind()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve_udp, self._serve_tcp)]

    def _bind(self) -> None:
        for _ in range(50):  # both transports need the same port
            self._udp.bind(("127.0.0.1", 0))
            self.port: int = self._udp.getsockname()[1]
            try:
                self._tcp.bind(("127.0.0.1", self.port))
            except OSError:
                self._udp.close()
                self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                continue
            self._tcp.listen(16)
            return
        raise AssertionError("no port is free for UDP and TCP")

    def load(self, zone: Iterable[str]) -> None:
        """Answer by other zones from now on."""
        records: dict[tuple[str, str], list[str]] = {}
        trouble: dict[tuple[str, str], str] = {}
        for line in zone:
            name, *rest = line.split(None, 3)
            if rest[0] in (SERVFAIL, REFUSED, SILENT):
                trouble[name, rest[1] if len(rest) > 1 else ""] = rest[0]
            else:
                records.setdefault((name, rest[1]), []).append(f"{rest[0]} {rest[2]}")
        self._records, self._trouble = records, trouble

    def __enter__(self) -> "NameServer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))  # a closed socket would not wake a thread that reads
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    def count(self, question: str) -> int:
        """How often a question was asked, by either transport."""
        return sum(asked.rpartition(" ")[0] == question for asked in self.asked)

    def _serve_udp(self) -> None:
        while True:
            data, peer = self._udp.recvfrom(4096)
            if self._stopped.is_set():
                return
            answer = self._answer(data, "udp")
            if answer:
                self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._tcp.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(5)
                length = struct.unpack("!H", _read(sock, 2))[0]
                answer = self._answer(_read(sock, length), "tcp")
                if answer:
                    sock.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, data: bytes, transport: str) -> bytes:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{name} {kind} {transport}")
        response = dns.message.make_response(query, recursion_available=True)
        trouble = self._trouble.get((name, kind)) or self._trouble.get((name, ""))
        if trouble == SILENT:
            return b""
        if trouble is not None:
            response.set_rcode(dns.rcode.from_text(trouble))
            return response.to_wire()
        if name in self.truncates and transport == "udp":
            response.flags |= dns.flags.TC
            return response.to_wire()
        for _ in range(20):
            alias = self._records.get((name, "CNAME"))
            found = self._records.get((name, kind))
            if found:
                response.answer.append(_rrset(name, kind, found))
                break
            if not alias:
                if not any(known == name or known.endswith(f".{name}") for known, _ in self._records):
                    response.set_rcode(dns.rcode.NXDOMAIN)
                break
            response.answer.append(_rrset(name, "CNAME", alias))
            if not self._follows:
                break
            name = alias[0].split()[1].rstrip(".")
        return response.to_wire()


def _rrset(name: str, kind: str, records: list[str]) -> dns.rrset.RRset:
    ttl = int(records[0].split()[0])
    return dns.rrset.from_text_list(
        dns.name.from_text(name), ttl, "IN", kind, [each.split(None, 1)[1] for each in records]
    )


def _read(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data
