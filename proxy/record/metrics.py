"""
Every metric of the program: name, help and label values.

Label values come from closed lists, from the settings or from rule files, never from a message or a peer; only group
names do, up to a limit. Updates never fail: a value that no list has still counts, because a metric must not cost a
message. Series whose labels are known exist from the start, at 0.
"""

import platform
from collections.abc import Iterable, Sequence
from itertools import product
from time import time
from typing import Generic, Literal, Protocol, TypeVar, get_args

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from proxy.mail.reply import Reply
from proxy.record import exposition
from proxy.record.delivery import DeliveryMetrics
from proxy.record.exposition import GROUP_LABEL_LIMIT, PREFIX, GroupLabels, Snapshot
from proxy.record.series import Counter, Gauge, Histogram
from proxy.route import OUTCOMES
from proxy.translate.model import NATIVE
from proxy.translate.outcome import Translation

SessionRefusal = Literal["too_many_connections", "shutting_down"]
SessionDrop = Literal["idle", "too_slow", "too_many_errors", "auth_failures", "overlong_line"]
AuthResult = Literal["accepted", "refused", "malformed", "cleartext_refused", "unsupported"]
MessageRefusal = Literal[
    "size",
    "header_section",
    "hops",
    "recipients",
    "bare_newline",
    "untranslatable",
    "invalid_value",
    "next_hop",
]
RecipientRefusal = Literal["next_hop", "limit"]
MailRefusal = Literal["no_connection", "pool_busy", "credentials", "extension"]
MessageDiscard = Literal["test_mode", "login"]
MessageAbandon = Literal["client_gone", "shutdown"]
UpstreamCommand = Literal["mail_rcpt", "data", "dot"]
InternalErrorPlace = Literal["session", "background"]

_MAIL_REFUSALS: dict[str, MailRefusal] = {
    "4.4.1": "no_connection",
    "4.3.2": "pool_busy",
    "4.3.5": "credentials",
}
TLS_VERSIONS = ("TLSv1.2", "TLSv1.3", "other")
CONNECT_STAGES = ("connect", "banner", "ehlo", "starttls", "auth", "transaction")
REMARK_KINDS = (
    *("invalid_value", "two_providers", "repeated_field", "repeated_key", "name_cut", "signature_broken"),
    "unknown_field",
)
NO_PROVIDER = "none"
UNGROUPED = "ungrouped"
MAX_GROUP_CHARACTERS = 100

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_Series = TypeVar("_Series")
_Series_co = TypeVar("_Series_co", covariant=True)


class _Staged(Protocol):
    stage: str


class _Labelled(Protocol[_Series_co]):
    def labels(self, *values: str) -> _Series_co: ...


class _Children(dict[str | tuple[str, ...], _Series], Generic[_Series]):
    """The series of a family by label value, or by a tuple of them; looked up once, then at hand."""

    def __init__(self, family: _Labelled[_Series], known: Iterable[str | tuple[str, ...]] = ()) -> None:
        super().__init__()
        self._family: _Labelled[_Series] = family
        for values in known:
            self[values]

    def __missing__(self, values: str | tuple[str, ...]) -> _Series:
        child = self._family.labels(*((values,) if isinstance(values, str) else values))
        self[values] = child
        return child


class _Registry:
    """What every process has: a registry of its own, and the state of the interpreter and the process in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def render(self) -> bytes:
        """Write all samples as text, of ``exposition.CONTENT_TYPE``."""
        return exposition.render(self.registry)

    def snapshot(self) -> Snapshot:
        """Take down all samples, for ``exposition.Totals`` in another process."""
        return exposition.snapshot(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        family = Counter(PREFIX + name, text, labels)
        self.registry.register(family)
        return family

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        family = Gauge(PREFIX + name, text, labels)
        self.registry.register(family)
        return family

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        family = Histogram(PREFIX + name, text, labels, _SECONDS)
        self.registry.register(family)
        return family


class Metrics(_Registry):
    """
    The metrics of a process that serves SMTP.

    Args:
        version: Of the program.
        listeners: Names of all listeners.
        providers: Names of all rule files in force.
        group_label_limit: Group names at most that become labels; the others are counted as ``other``.
    """

    def __init__(
        self,
        version: str,
        listeners: Sequence[str] = (),
        providers: Sequence[str] = (),
        group_label_limit: int = GROUP_LABEL_LIMIT,
    ) -> None:
        super().__init__()
        self._make_program(version)
        self._make_sessions(listeners)
        self._make_messages(listeners)
        self._make_translation(providers, group_label_limit)
        self._make_relay()
        self._delivery: DeliveryMetrics | None = None

    @property
    def delivery(self) -> DeliveryMetrics:
        """Those of the sending core; they exist once somebody asks for them."""
        if self._delivery is None:
            self._delivery = DeliveryMetrics(self.registry)
        return self._delivery

    # Program

    def _make_program(self, version: str) -> None:
        info = self._gauge("build_info", "Always 1; the labels say what runs.", "version", "python")
        info.labels(version, platform.python_version()).set(1)
        self._internal_errors = _Children(
            self._counter("internal_errors_total", "Errors that are bugs, by where they were caught.", "where"),
            get_args(InternalErrorPlace),
        )
        self._rules = self._gauge("rules", "Rules in force.").labels()
        self._rules_success = self._gauge(
            "rules_last_reload_success", "Whether the last attempt to load the rule files worked: 1 or 0."
        ).labels()
        self._rules_time = self._gauge(
            "rules_last_reload_timestamp_seconds", "When the rules in force were loaded, in Unix time; 0 for never."
        ).labels()
        self._certificate_success = self._gauge(
            "certificate_last_reload_success",
            "Whether the last attempt to load the certificate worked: 1 or 0; 1 too where there is none.",
        ).labels()
        self._certificate_success.set(1)
        self._certificate_time = self._gauge(
            "certificate_last_reload_timestamp_seconds",
            "When the certificate in force was loaded, in Unix time; 0 for never.",
        ).labels()
        self._tokens_success = self._gauge(
            "tokens_last_reload_success", "Whether the last attempt to load the issued tokens worked: 1 or 0."
        ).labels()
        self._tokens_success.set(1)
        self._certificate_end = self._gauge(
            "certificate_not_after_timestamp_seconds",
            "When the certificate in force expires, in Unix time; 0 for none.",
        ).labels()

    def internal_error(self, where: InternalErrorPlace) -> None:
        """Count an error that is a bug."""
        self._internal_errors[where].inc()

    def rules_reload(self, ok: bool, rules: int = 0) -> None:
        """Note that rule files were loaded, or could not be: the old ones stay in force then."""
        self._rules_success.set(ok)
        if ok:
            self._rules.set(rules)
            self._rules_time.set(time())

    def tokens_reload(self, ok: bool) -> None:
        """Note that the issued tokens were loaded, or could not be: the old ones stay in force then."""
        self._tokens_success.set(ok)

    def certificate_reload(self, ok: bool, not_after: float) -> None:
        """
        Note that a certificate was loaded, or could not be: the old one stays in force then.

        Args:
            not_after: When the certificate in force expires, in Unix time.
        """
        self._certificate_success.set(ok)
        self._certificate_end.set(not_after)
        if ok:
            self._certificate_time.set(time())

    # Sessions

    def _make_sessions(self, listeners: Sequence[str]) -> None:
        self._open = _Children(self._gauge("sessions_open", "SMTP sessions at the moment.", "listener"), listeners)
        self._opened = _Children(self._counter("sessions_total", "SMTP sessions begun.", "listener"), listeners)
        self._turned_away = _Children(
            self._counter("sessions_refused_total", "Clients turned away with 421 before a session.", "reason"),
            get_args(SessionRefusal),
        )
        self._dropped = _Children(
            self._counter("sessions_dropped_total", "Sessions ended by us because of the client.", "reason"),
            get_args(SessionDrop),
        )
        self._handshakes = _Children(
            self._counter("tls_handshakes_total", "TLS handshakes with clients that worked.", "version"), TLS_VERSIONS
        )
        self._tls_failures = self._counter(
            "tls_handshake_failures_total", "TLS handshakes with clients that failed."
        ).labels()
        self._commands = _Children(
            self._counter(
                "commands_refused_total", "Commands that we answered as a mistake; other: unknown ones.", "command"
            ),
            ("AUTH", "MAIL", "RCPT", "DATA", "STARTTLS", "other"),
        )
        self._auth = _Children(
            self._counter("auth_attempts_total", "AUTH commands by what came of them.", "result"), get_args(AuthResult)
        )

    def command_refused(self, command: str) -> None:
        """Count a command that was answered as a mistake; *command* is a verb we know, or ``other``."""
        self._commands[command].inc()

    def session_opened(self, listener: str) -> None:
        """Count a client that is served."""
        self._open[listener].inc()
        self._opened[listener].inc()

    def session_closed(self, listener: str) -> None:
        """Note the end of a session that was opened."""
        self._open[listener].dec()

    def session_refused(self, reason: SessionRefusal) -> None:
        """Count a client that was turned away."""
        self._turned_away[reason].inc()

    def session_dropped(self, reason: SessionDrop) -> None:
        """Count a session we ended."""
        self._dropped[reason].inc()

    def tls_started(self, version: str | None) -> None:
        """Count a handshake; *version* is as ``ssl`` names it."""
        self._handshakes[version if version in TLS_VERSIONS else "other"].inc()

    def tls_failed(self) -> None:
        """Count a handshake that failed."""
        self._tls_failures.inc()

    def auth(self, result: AuthResult) -> None:
        """Count an AUTH command."""
        self._auth[result].inc()

    # Messages

    def _make_messages(self, listeners: Sequence[str]) -> None:
        self._received = _Children(
            self._counter("messages_received_total", "Messages begun: DATA was answered with 354.", "listener"),
            listeners,
        )
        self._refused = _Children(
            self._counter(
                "messages_refused_total", "Messages answered with 4yz or 5yz; next_hop: by the platform.", "reason"
            ),
            get_args(MessageRefusal),
        )
        self._discarded = _Children(
            self._counter("messages_discarded_total", "Messages answered with 250 and not sent, on purpose.", "reason"),
            get_args(MessageDiscard),
        )
        self._mails = _Children(
            self._counter(
                "mail_refused_total",
                "MAIL commands refused for want of the platform; extension: it lacks what MAIL asks for.",
                "reason",
            ),
            get_args(MailRefusal),
        )
        self._recipients = _Children(
            self._counter("recipients_refused_total", "RCPT commands refused; next_hop: by the platform.", "reason"),
            get_args(RecipientRefusal),
        )
        self._abandoned = _Children(
            self._counter(
                "messages_abandoned_total",
                "Messages that got no answer: the client left, or the end of the program cut them off.",
                "reason",
            ),
            get_args(MessageAbandon),
        )
        self._bytes = self._counter("message_bytes_total", "Octets of messages received.").labels()

    def message_received(self, listener: str) -> None:
        """Count a message that begins."""
        self._received[listener].inc()

    def recipient_refused(self, reason: RecipientRefusal) -> None:
        """Count a RCPT that was refused."""
        self._recipients[reason].inc()

    def mail_refused(self, reply: Reply) -> None:
        """Count a MAIL that the route refused; its reply tells why."""
        self._mails[_MAIL_REFUSALS.get(reply.enhanced, "extension")].inc()

    def message_refused(self, reason: MessageRefusal) -> None:
        """Count a message that was refused."""
        self._refused[reason].inc()

    def message_discarded(self, reason: MessageDiscard) -> None:
        """Count a message that was dropped on purpose."""
        self._discarded[reason].inc()

    def message_abandoned(self, reason: MessageAbandon) -> None:
        """Count a message that got no answer."""
        self._abandoned[reason].inc()

    def message_bytes(self, octets: int) -> None:
        """Count what was received of a message."""
        self._bytes.inc(octets)

    # Translation

    def _make_translation(self, providers: Sequence[str], group_label_limit: int) -> None:
        self._translated = _Children(
            self._counter(
                "translated_total", "X-Cmail fields written, by provider they come from.", "provider", "target"
            ),
            product(providers, NATIVE),
        )
        self._untranslatable = _Children(
            self._counter(
                "untranslatable_total",
                "Provider fields in use that have no counterpart; field is as the rule file spells it.",
                *("provider", "field", "class", "action"),
            )
        )
        self._remarks = _Children(
            self._counter("remarks_total", "Oddities of messages that changed nothing else.", "kind", "provider"),
            product(REMARK_KINDS, (*providers, NO_PROVIDER)),
        )
        self._groups = GroupLabels(group_label_limit)
        self._by_group = _Children(
            self._counter("messages_by_group_total", "Messages by group, whatever became of them.", "group"),
            (UNGROUPED, exposition.OTHER_GROUP),
        )

    def translation(self, translation: Translation) -> None:
        """Count what was written, what was lost, and the group."""
        for setting in translation.settings:
            self._translated[setting.provider or NO_PROVIDER, setting.target].inc()
        for loss in translation.losses:
            self._untranslatable[loss.provider, loss.source, loss.loss_class, loss.action.value].inc()
        for remark in translation.remarks:
            self._remarks[remark.kind, remark.provider or NO_PROVIDER].inc()
        group = translation.group
        self._by_group[UNGROUPED if group is None else self._groups.label(_clean(group))].inc()

    # Relay

    def _make_relay(self) -> None:
        self._relayed = _Children(
            self._counter("relayed_total", "Messages handed to the platform, by how that ended.", "outcome"), OUTCOMES
        )
        self._relay_seconds = self._histogram("relay_seconds", "From MAIL to our reply to the dot.").labels()
        self._reply_seconds = _Children(
            self._histogram("upstream_reply_seconds", "From a command to the platform's reply.", "command"),
            get_args(UpstreamCommand),
        )
        self._connect_seconds = self._histogram(
            "upstream_connect_seconds", "To get a connection to the platform ready: TCP, EHLO, TLS, AUTH."
        ).labels()
        self._connect_failures = _Children(
            self._counter("upstream_connect_failures_total", "Connections to the platform not got, by where.", "stage"),
            CONNECT_STAGES,
        )
        connections = _Children(
            self._gauge("upstream_connections", "Connections to the platform, by what they do.", "state"),
            ("busy", "idle"),
        )
        self._busy, self._idle = connections["busy"], connections["idle"]
        self._reachable = self._gauge(
            "upstream_reachable", "Whether the last attempt to get a connection to the platform worked: 1 or 0."
        ).labels()

    def relayed(self, outcome: str, seconds: float) -> None:
        """
        Count a message that was handed on, or should have been.

        Args:
            outcome: One of ``proxy.route.OUTCOMES``.
            seconds: From MAIL to the reply to the dot.
        """
        self._relayed[outcome].inc()
        self._relay_seconds.observe(seconds)

    def upstream_reply(self, command: UpstreamCommand, seconds: float) -> None:
        """Note how long the platform took to answer."""
        self._reply_seconds[command].observe(seconds)

    def connection_opened(self, seconds: float) -> None:
        """Note how long a connection to the platform took to get ready."""
        self._reachable.set(1)
        self._connect_seconds.observe(seconds)

    def connection_failed(self, error: _Staged) -> None:
        """Count a connection that could not be had."""
        self._reachable.set(0)
        self._connect_failures[error.stage].inc()

    def connection_lost(self, error: _Staged) -> None:
        """Count a connection that was lost in a transaction; others may work."""
        self._connect_failures[error.stage].inc()

    def pool_changed(self, busy: int, idle: int) -> None:
        """Note the state of the pool."""
        self._busy.set(busy)
        self._idle.set(idle)


class SupervisorMetrics(_Registry):
    """The metrics of a parent process: its own, and those of its workers as processes."""

    def __init__(self) -> None:
        super().__init__()
        self._running = self._gauge("workers_running", "Worker processes at the moment.").labels()
        self._deaths = self._counter(
            "worker_deaths_total", "Worker processes that ended without being asked to."
        ).labels()

    def worker_started(self) -> None:
        """Note a new worker."""
        self._running.inc()

    def worker_ended(self, asked: bool) -> None:
        """Note the end of a worker."""
        self._running.dec()
        if not asked:
            self._deaths.inc()


def _clean(group: str) -> str:
    """Make a label of a group name, which may hold lone surrogates and be of any length."""
    return group[:MAX_GROUP_CHARACTERS].encode("utf-8", "replace").decode()
