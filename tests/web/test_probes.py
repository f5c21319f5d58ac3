"""The probes over real HTTP: what kubelet and Prometheus see."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from proxy.listening import BindError
from proxy.record.metrics import Metrics
from proxy.web.health import Health
from proxy.web.probes import Probes

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 10.0
Answer = tuple[int, dict[str, str], str]
Ask = Callable[..., Awaitable[Answer]]


async def render() -> bytes:
    """Give metrics as the program does."""
    return Metrics("1.2.3", ["127.0.0.1:2525"]).render()


@pytest.fixture
def health() -> Health:
    """Make the health of a program that has started."""
    return Health(started=True)


@pytest_asyncio.fixture
async def probes(health: Health) -> AsyncIterator[Probes]:
    """Serve the probes on a free port."""
    served = Probes("127.0.0.1", 0, health, render, idle_seconds=0.5)
    await served.start()
    yield served
    await served.stop()


@pytest.fixture
def ask(probes: Probes) -> Ask:
    """Make a client for the probes: method and path in; status, header and body out."""

    def blocking(method: str, path: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", probes.port, timeout=WAIT_SECONDS)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return (
                response.status,
                {name.lower(): text for name, text in response.getheaders()},
                response.read().decode(),
            )
        finally:
            connection.close()

    async def asking(path: str, method: str = "GET") -> Answer:
        return await asyncio.to_thread(blocking, method, path)

    return asking


async def raw(port: int, data: bytes) -> bytes:
    """Send octets, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(WAIT_SECONDS):
        answer = await reader.read()
    writer.close()
    return answer


async def test_started_and_healthy_program_passes_all_probes(ask: Ask) -> None:
    """A program that serves says so in one line for each probe."""
    for path, body in (("/livez", "live\n"), ("/readyz", "ready\n"), ("/startupz", "started\n")):
        status, header, text = await ask(path)
        assert (status, text) == (200, body)
        assert header["content-type"] == "text/plain; charset=utf-8"
        assert header["cache-control"] == "no-store"


async def test_program_that_starts_is_alive_and_no_more(ask: Ask, health: Health) -> None:
    """Before the listeners are up only liveness holds."""
    health.started = False
    assert (await ask("/livez"))[::2] == (200, "live\n")
    assert (await ask("/startupz"))[::2] == (503, "not started yet\n")
    assert (await ask("/readyz"))[::2] == (503, "not started yet\n")


async def test_reasons_make_it_not_ready_but_leave_it_alive(ask: Ask, health: Health) -> None:
    """Readiness gives each reason in a line of its own; when they are gone, it is back."""
    health.reasons["upstream"] = "connect: refused"
    health.reasons["certificate"] = "expired"
    assert (await ask("/readyz"))[::2] == (503, "upstream: connect: refused\ncertificate: expired\n")
    assert (await ask("/livez"))[::2] == (200, "live\n")
    assert (await ask("/startupz"))[::2] == (200, "started\n")
    health.reasons.clear()
    assert (await ask("/readyz"))[::2] == (200, "ready\n")


async def test_program_that_stops_is_not_ready(ask: Ask, health: Health) -> None:
    """Load balancers learn that the end is near, while liveness and start are as before."""
    health.stopping = True
    assert (await ask("/readyz"))[::2] == (503, "stopping\n")
    assert (await ask("/livez"))[::2] == (200, "live\n")
    assert (await ask("/startupz"))[::2] == (200, "started\n")


async def test_metrics_are_what_prometheus_reads(ask: Ask) -> None:
    """The body has the type of the text format, and its parser reads it."""
    status, header, text = await ask("/metrics")
    assert status == 200
    assert header["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "cmail_proxy_sessions" in {family.name for family in text_string_to_metric_families(text)}


async def test_query_is_ignored(ask: Ask) -> None:
    """A path counts without what follows it."""
    assert (await ask("/readyz?verbose=1"))[::2] == (200, "ready\n")


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/livez/x", "/%2e%2e/livez", "//livez", "/LIVEZ"])
async def test_other_paths_are_not_found(ask: Ask, path: str) -> None:
    """Any other path is 404 with the paths there are."""
    assert (await ask(path))[::2] == (404, "not found; there are /metrics, /livez, /readyz and /startupz\n")


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/startupz"])
async def test_head_is_get_without_a_body(ask: Ask, path: str) -> None:
    """HEAD answers with the status and fields of GET."""
    status, header, text = await ask(path, "HEAD")
    assert (status, text) == (200, "")
    if path != "/metrics":  # whose length may change from one moment to the next
        assert header["content-length"] == (await ask(path))[1]["content-length"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_other_methods_are_not_allowed(ask: Ask, method: str) -> None:
    """Nothing can be changed by HTTP."""
    status, header, text = await ask("/readyz", method)
    assert (status, text) == (405, "only GET and HEAD are allowed\n")
    assert header["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 5000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 100 + b"\r\n",
        b"GARBAGE\r\n\r\n",
    ],
)
async def test_oversized_or_broken_requests_are_refused(
    probes: Probes, ask: Ask, request_head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Long paths, long or many fields and nonsense get 400 and a close, without a word in the log."""
    assert (await raw(probes.port, request_head)).split()[1] == b"400"
    assert (await ask("/livez"))[0] == 200
    assert not caplog.records


async def test_failure_to_render_is_an_error_for_the_log(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in what is served costs one answer, tells the client nothing, and is logged with its traceback."""

    async def fail() -> bytes:
        raise ValueError("a secret")

    probes = Probes("127.0.0.1", 0, health, fail)
    await probes.start()
    answer = await raw(probes.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a secret"]
    answer = await raw(probes.port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"live\n")
    await probes.stop()


async def test_connection_without_a_request_is_closed(probes: Probes) -> None:
    """Who connects and says nothing, or never ends its request, is not kept."""
    assert await raw(probes.port, b"") == b""
    assert await raw(probes.port, b"GET /livez HT") == b""


async def test_connection_is_kept_for_a_while_after_a_request(probes: Probes) -> None:
    """Prometheus may use a connection again, and one that is not used is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", probes.port)
    async with asyncio.timeout(WAIT_SECONDS):
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"live\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.read() == b""
    writer.close()


async def test_stopped_probes_close_connections_and_the_port(health: Health) -> None:
    """After stop nothing listens, and connections that were kept are closed."""
    probes = Probes("127.0.0.1", 0, health, render)
    await probes.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", probes.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(WAIT_SECONDS):
        await reader.readuntil(b"live\n")
        await probes.stop()
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", probes.port)


async def test_stop_before_start_is_harmless(health: Health) -> None:
    """A program whose start failed half-way can stop all of its parts."""
    await Probes("127.0.0.1", 0, health, render).stop()


async def test_port_in_use_is_told(health: Health) -> None:
    """A port that cannot be had is an error with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError) as caught:
            await Probes("127.0.0.1", port, health, render).start()
    assert str(caught.value).startswith(f"127.0.0.1:{port}: address already in use; ")


async def test_ipv6_is_served(health: Health) -> None:
    """The probes listen on an IPv6 address as well."""
    probes = Probes("::1", 0, health, render)
    await probes.start()
    reader, writer = await asyncio.open_connection("::1", probes.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(WAIT_SECONDS):
        assert (await reader.read()).endswith(b"\r\n\r\nlive\n")
    writer.close()
    await probes.stop()


def test_http_is_imported_only_at_start() -> None:
    """SMTP is up before the HTTP server is even loaded."""
    code = "import sys, json, proxy.web.probes, proxy.supervisor; print(json.dumps('aiohttp' in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30, check=True)
    assert json.loads(run.stdout) is False
