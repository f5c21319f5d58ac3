"""
Several workers for the same listeners, and the parent that starts, watches and ends them.

Each worker gets sockets of its own for every port, and the system spreads connections over them (SO_REUSEPORT). They
are bound here, since a worker may lack the right to, and start to listen in the worker, so that no connection waits for
one that is not ready. When a worker dies its sockets go with it; the ports stay ours, for the parent keeps each one
reserved.

Parent and worker talk over a pair of sockets, one JSON text to a line: the parent asks ``{"id": 7, "ask": "health"}``
or ``"snapshot"``; the worker answers with the id, ``started``, ``obstacles`` and, for a snapshot, ``metrics``. The end
of that connection tells a worker that its parent is gone.
"""

import asyncio
import contextlib
import json
import signal
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from time import monotonic
from typing import Any

from attrs import asdict, field, frozen

from proxy.listening import BindError, bind_shared, place, reserve
from proxy.record.exposition import Snapshot, Totals
from proxy.record.log import Log
from proxy.record.metrics import SupervisorMetrics
from proxy.web.health import Health
from proxy.web.probes import Probes

WORKER_VARIABLE = "CMAIL_PROXY_WORKER"
MAX_ANSWER_OCTETS = 8_388_608
ANSWER_SECONDS = 2.0

_SNAPSHOT_EVERY = 10  # looks: what a dying worker has counted since then is lost


@frozen
class WorkerPlace:
    """
    What a worker gets from its parent.

    Args:
        number: Counted from 1; label of metrics.
        control: File descriptor of its end of the control connection.
        listeners: File descriptors of its sockets, bound but not listening: those for mail in the order of the
            settings, then those for pages.
    """

    number: int
    control: int
    listeners: tuple[int, ...]

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> "WorkerPlace | None":
        """Read the variable that says so, and remove it: it is no setting. None in a process without such a parent."""
        text = environ.pop(WORKER_VARIABLE, "")
        if not text:
            return None
        said = json.loads(text)
        return cls(said["number"], said["control"], tuple(said["listeners"]))

    def sockets(self) -> list[socket.socket]:
        """Make socket objects of the file descriptors."""
        return [_own(descriptor) for descriptor in self.listeners]


class WorkerChannel:
    """
    A worker's end of the control connection.

    Args:
        control: Its file descriptor.
        metrics: Gives the worker's samples.
        parent_gone: Called once when the parent has ended; the worker should end, too.
    """

    def __init__(
        self, control: int, health: Health, metrics: Callable[[], Snapshot], parent_gone: Callable[[], None]
    ) -> None:
        self._control = control
        self._health = health
        self._metrics = metrics
        self._parent_gone = parent_gone
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        reader, writer = await asyncio.open_unix_connection(sock=_own(self._control))
        self._task = asyncio.create_task(self._serve(reader, writer))

    async def stop(self) -> None:
        """Stop to answer, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while line := await reader.readline():
                    question = json.loads(line)
                    answer: dict[str, Any] = {
                        "id": question["id"],
                        "started": self._health.started,
                        "obstacles": self._health.obstacles(),
                    }
                    if question["ask"] == "snapshot":
                        answer["metrics"] = self._metrics()
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
            self._parent_gone()
        finally:
            writer.close()


@frozen
class Patience:
    """
    How the parent treats workers that fail.

    Args:
        quick_seconds: A worker that lives for less died at start.
        quick_deaths: So many in a row are borne while no worker has served yet; one more ends the program.
        first_pause_seconds: Before the first restart; doubled each time a worker dies at start.
        longest_pause_seconds: Pauses grow no longer.
        look_seconds: Between two questions to each worker.
        unanswered: After so many questions in a row without an answer a worker counts as hung, and is killed.
        grace_seconds: What a worker gets on top of its own time limit for stopping, before it is killed.
    """

    quick_seconds: float = 10
    quick_deaths: int = 5
    first_pause_seconds: float = 1
    longest_pause_seconds: float = 30
    look_seconds: float = 1
    unanswered: int = 30
    grace_seconds: float = 5


@frozen
class Crew:
    """
    What to run.

    Args:
        workers: How many.
        command: Starts a worker.
        environment: Of a worker; a variable is added.
        listeners: Address and port of each listener; 0 for any free port.
        pages: Address and port of each listener that is not for mail.
        probes: Address and port of the probes for all workers.
        stop_seconds: A worker's own time limit for stopping.
        onward: Where messages go, for the log.
    """

    workers: int
    command: Sequence[str]
    environment: Mapping[str, str]
    listeners: Sequence[tuple[str, int]]
    probes: tuple[str, int]
    stop_seconds: float
    onward: str = ""
    pages: Sequence[tuple[str, int]] = ()
    patience: Patience = field(factory=Patience)


async def supervise(crew: Crew, log: Log) -> int:
    """
    Run the workers until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 when all workers ended in time after being asked to.

    Raises:
        BindError: A port cannot be had; nothing was started.
    """
    reserved = reserve([*crew.listeners, *crew.pages])
    try:
        return await _Supervisor(crew, log, [each.getsockname()[:2] for each in reserved]).run()
    finally:
        for each in reserved:
            each.close()


class _Control:
    """The parent's end of a control connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._id = 0

    async def ask(self, what: str) -> dict[str, Any] | None:
        """Ask, and give the answer; None when there is none in time."""
        async with self._lock:
            self._id += 1
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    self._writer.write(json.dumps({"id": self._id, "ask": what}).encode() + b"\n")
                    await self._writer.drain()
                    while line := await self._reader.readline():
                        answer: dict[str, Any] = json.loads(line)
                        if answer["id"] == self._id:  # else it answers an earlier question, too late
                            return answer
            except (TimeoutError, OSError, ValueError):
                pass
            return None

    def close(self) -> None:
        self._writer.close()


class _Worker:
    """One place in the crew: who has it at the moment, and what it said last."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.control: _Control | None = None
        self.died = False
        self.gone()

    def gone(self) -> None:
        self.process = None
        self.control = None
        self.started = False
        self.obstacles = ["not running"]
        self.unanswered = 0

    def heard(self, answer: dict[str, Any]) -> None:
        self.started = answer["started"]
        self.obstacles = answer["obstacles"]
        self.unanswered = 0


class _Supervisor:
    def __init__(self, crew: Crew, log: Log, places: list[tuple[str, int]]) -> None:
        self._crew = crew
        self._log = log
        self._places = places
        self._mail_places = places[: len(crew.listeners)]
        self._workers = [_Worker(number) for number in range(1, crew.workers + 1)]
        self._stopping = asyncio.Event()
        self._served = False
        self._exit_code = 0
        self._health = Health()
        self._metrics = SupervisorMetrics()
        self._totals = Totals()
        self._probes_port = 0

    async def run(self) -> int:
        probes = Probes(*self._crew.probes, self._health, self._render)
        await probes.start()
        self._probes_port = probes.port
        self._judge()
        self._log.info(
            "supervisor_started",
            workers=len(self._workers),
            listeners=[place(*each) for each in self._mail_places],
            probes=place(self._crew.probes[0], probes.port),
        )
        with self._signals():
            watch = asyncio.create_task(self._watch())
            await asyncio.gather(*(self._keep(worker) for worker in self._workers))
            watch.cancel()
            await asyncio.wait([watch])
            await probes.stop()
        self._log.info("supervisor_stopped", exit_code=self._exit_code)
        return self._exit_code

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing to reload here: workers watch their files themselves
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number.name)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self, reason: str) -> None:
        if not self._stopping.is_set():
            self._log.info("supervisor_stopping", reason=reason)
            self._health.stopping = True
            self._stopping.set()

    # Processes

    async def _keep(self, worker: _Worker) -> None:
        """
        Keep a place filled until the end.

        Nobody can use a program of which no worker ever served, so that one ends and says why. Once mail was taken, a
        place that cannot be filled costs only its share: the healthy workers serve on, and it is tried for ever, since
        what keeps it empty (a broken rule file, an expired certificate, no memory) may be mended at any time.
        """
        patience = self._crew.patience
        quick, pause = 0, 0.0
        while not self._stopping.is_set():
            began = monotonic()
            how = await self._fill(worker)
            if self._stopping.is_set():
                break
            quick = quick + 1 if monotonic() - began < patience.quick_seconds else 0
            if quick > patience.quick_deaths and not self._served:
                self._log.error("worker_given_up", worker=worker.number, how=how, deaths_at_start=quick)
                self._exit_code = 1
                self._stop(f"worker {worker.number} dies at start")
                break
            pause = min(2 * pause if quick > 1 else patience.first_pause_seconds, patience.longest_pause_seconds)
            self._log.error("worker_died", worker=worker.number, how=how, restart_in_seconds=pause)
            worker.died = True
            self._judge()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _fill(self, worker: _Worker) -> str:
        """Run one process from start to end, and say how it ended."""
        try:
            process = await self._start(worker)
        except (OSError, BindError) as error:
            return f"not started: {error}"
        self._log.info("worker_started", worker=worker.number, pid=process.pid)
        self._metrics.worker_started()
        try:
            code = await self._outlast(worker, process)
        finally:
            if worker.control is not None:
                worker.control.close()
            worker.gone()
            self._totals.ended(str(worker.number))
            self._metrics.worker_ended(asked=self._stopping.is_set())
            self._judge()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if self._stopping.is_set():
            self._log.info("worker_stopped", worker=worker.number, pid=process.pid, how=how)
        return how

    async def _start(self, worker: _Worker) -> Process:
        with contextlib.ExitStack() as given:  # what the worker gets, the parent closes
            ours, theirs = socket.socketpair()
            given.callback(theirs.close)
            control = _Control(*await asyncio.open_unix_connection(sock=ours, limit=MAX_ANSWER_OCTETS))
            try:
                sockets = []
                for each in self._places:
                    sockets.append(bind_shared(*each))
                    given.callback(sockets[-1].close)
                own = WorkerPlace(worker.number, theirs.fileno(), tuple(each.fileno() for each in sockets))
                process = await asyncio.create_subprocess_exec(
                    *self._crew.command,
                    stdin=DEVNULL,
                    env={**self._crew.environment, WORKER_VARIABLE: json.dumps(asdict(own))},
                    pass_fds=(own.control, *own.listeners),
                    start_new_session=True,  # Ctrl-C is the parent's to pass on
                )
            except BaseException:
                control.close()
                raise
        worker.process = process
        worker.control = control
        worker.obstacles = ["not started yet"]
        self._judge()
        return process

    async def _outlast(self, worker: _Worker, process: Process) -> int:
        """Wait for the end of a process; when the program is to stop, bring it about."""
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            _send(process, signal.SIGTERM)
            limit = self._crew.stop_seconds + self._crew.patience.grace_seconds
            await asyncio.wait([ended], timeout=limit)
            if not ended.done():
                self._log.error("worker_killed", worker=worker.number, pid=process.pid, after_seconds=limit)
                self._exit_code = 1
                _send(process, signal.SIGKILL)
        return await ended

    # What they say

    async def _watch(self) -> None:
        """Look after all workers at regular times."""
        looks = 0
        while True:
            looks += 1
            what = "health" if looks % _SNAPSHOT_EVERY else "snapshot"
            await asyncio.gather(*(self._look(worker, what) for worker in self._workers))
            self._judge()
            await asyncio.sleep(self._crew.patience.look_seconds)

    async def _look(self, worker: _Worker, what: str) -> None:
        process = worker.process
        if await self._ask(worker, what) or process is None or worker.process is not process:
            return
        worker.unanswered += 1
        if worker.started:
            worker.obstacles = ["does not answer"]
        if worker.unanswered == self._crew.patience.unanswered:
            self._log.error("worker_hung", worker=worker.number, pid=process.pid, unanswered=worker.unanswered)
            _send(process, signal.SIGKILL)

    async def _ask(self, worker: _Worker, what: str) -> bool:
        control = worker.control
        answer = await control.ask(what) if control is not None else None
        if answer is None or worker.control is not control:  # its successor has not said that
            return False
        worker.heard(answer)
        if "metrics" in answer:
            self._totals.update(str(worker.number), answer["metrics"])
        return True

    def _judge(self) -> None:
        """Sum up the health of all workers: the program is ready while one of them is, for that one gets the mail."""
        started = sum(worker.started for worker in self._workers)
        self._served = self._served or started > 0
        # A worker that failed is not waited for; the others are, so that all that can serve do when the mail comes.
        if not self._health.started and started and all(worker.started or worker.died for worker in self._workers):
            self._health.started = True
            pages = [{"address": address, "port": port} for address, port in self._places[len(self._mail_places) :]]
            self._log.info(
                "listening",
                listeners=[{"address": address, "port": port} for address, port in self._mail_places],
                probes={"address": self._crew.probes[0], "port": self._probes_port},
                public=pages[0] if pages else None,
                onward=self._crew.onward,
                workers=started,
            )
        reasons = {f"worker {each.number}": "; ".join(each.obstacles) for each in self._workers if each.obstacles}
        self._health.reasons = reasons if len(reasons) == len(self._workers) else {}

    async def _render(self) -> bytes:
        await asyncio.gather(*(self._ask(worker, "snapshot") for worker in self._workers))
        self._totals.update("parent", self._metrics.snapshot())
        return self._totals.render()


def _own(descriptor: int) -> socket.socket:
    """
    Take over a socket from the parent.

    Processes that the worker starts must not get it as well: uvloop closes nothing for them, and one that outlives the
    worker would keep a port open on which nobody answers.
    """
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return sock


def _send(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
