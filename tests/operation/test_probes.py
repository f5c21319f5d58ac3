"""The probes of the running proxy: what kubelet and Prometheus see, whatever becomes of the platform."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operation.program import eventually, free_port, samples
from tests.smtp_in.dialogue import Client
from tests.smtp_in.site import Site, site
from tests.support.proxy_process import ProxyProcess, settings
from tests.support.upstream import Upstream

NOT_REACHED = "upstream: the next hop was not reached yet\n"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy whose platform answers."""
    with site(tmp_path_factory.mktemp("probes")) as started:
        yield started


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    return free_port()


def ask(proxy: ProxyProcess, method: str, path: str) -> tuple[int, str | None, bytes]:
    """Ask the probes: status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.probes_port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "body"), [("/livez", b"live\n"), ("/readyz", b"ready\n"), ("/startupz", b"started\n")]
)
def test_running_proxy_passes_all_probes(here: Site, path: str, body: bytes) -> None:
    """A proxy that serves says so in a word; HEAD is answered too."""
    assert ask(here.proxy, "GET", path) == (200, "text/plain; charset=utf-8", body)
    assert ask(here.proxy, "HEAD", path) == (200, "text/plain; charset=utf-8", b"")
    assert ask(here.proxy, "GET", f"{path}?verbose") == (200, "text/plain; charset=utf-8", body)


def test_metrics_are_in_the_text_format(here: Site) -> None:
    """Prometheus' own parser reads the page, and every metric of ours has our prefix."""
    status, content_type, body = ask(here.proxy, "GET", "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    names = {name for name, _ in samples(body.decode())}
    foreign = {name for name in names if not name.startswith(("cmail_proxy_", "python_", "process_"))}
    assert foreign == set()
    assert {"cmail_proxy_build_info", "cmail_proxy_sessions_open", "process_open_fds"} <= names


@pytest.mark.parametrize("path", ["/", "/metrics/", "/admin", "/o/token", "/%2e%2e/readyz"])
def test_other_pages_are_not_found(here: Site, path: str) -> None:
    """There is nothing else on this port, and the answer tells what there is."""
    assert ask(here.proxy, "GET", path) == (
        404,
        "text/plain; charset=utf-8",
        b"not found; there are /metrics, /livez, /readyz and /startupz\n",
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed_here(here: Site, method: str) -> None:
    """The probes are for reading."""
    assert ask(here.proxy, method, "/readyz")[::2] == (405, b"only GET and HEAD are allowed\n")


def test_unreachable_platform_fails_no_probe_by_default(tmp_path: Path, closed_port: int) -> None:
    """A sidecar that is restarted because the platform is away helps nobody; apps get 451 and try again."""
    with ProxyProcess(tmp_path, settings(closed_port)) as proxy:
        failed = proxy.event("upstream_failed")
        assert (failed["level"], failed["stage"]) == ("error", "connect")
        for path, body in (("/livez", "live\n"), ("/readyz", "ready\n"), ("/startupz", "started\n")):
            assert proxy.get(path) == (200, body)
        assert proxy.metric("cmail_proxy_upstream_reachable") == 0
        assert proxy.metric("cmail_proxy_upstream_connect_failures_total", stage="connect") == 1
        with Client(proxy.port) as client:
            assert client.say("MAIL FROM:<a@example.com>") == (
                "451 4.4.1 The next hop cannot be reached at the moment, try again later"
            )


def test_unreachable_platform_fails_readiness_where_it_is_required(tmp_path: Path, closed_port: int) -> None:
    """With relay.required_for_readiness the proxy is not ready until the platform comes up; it is alive all along."""
    values = settings(closed_port, relay={"required_for_readiness": True})
    with ProxyProcess(tmp_path, values) as proxy:
        proxy.event("upstream_failed")
        status, body = proxy.get("/readyz")
        assert status == 503
        assert body.startswith("upstream: the next hop cannot be reached: connect: ")
        assert proxy.get("/livez") == (200, "live\n")
        assert proxy.get("/startupz") == (200, "started\n")
        with Upstream(port=closed_port):
            eventually(lambda: proxy.get("/readyz") == (200, "ready\n"), "ready")
            assert proxy.metric("cmail_proxy_upstream_reachable") == 1
            assert proxy.get("/livez") == (200, "live\n")


def test_platform_that_a_message_reached_is_no_obstacle_any_more(tmp_path: Path, closed_port: int) -> None:
    """A message that got through shows that the platform is there: no need to wait for the next look."""
    values = settings(closed_port, relay={"required_for_readiness": True})
    with ProxyProcess(tmp_path, values) as proxy:
        proxy.event("upstream_failed")
        with Upstream(port=closed_port), Client(proxy.port) as client:
            assert client.say("MAIL FROM:<a@example.com>") == "250 2.1.0 OK"
            assert proxy.get("/readyz") == (200, "ready\n")


def test_platform_that_does_not_answer_yet_is_waited_for(tmp_path: Path) -> None:
    """Required and slow to greet: not ready until it does, then ready, without any other event."""
    with Upstream({"banner": "stall"}) as upstream:
        values = settings(upstream.port, relay={"required_for_readiness": True, "connect_seconds": 20})
        with ProxyProcess(tmp_path, values) as proxy:
            upstream.wait_for(lambda: bool(upstream.dialogues))
            assert proxy.get("/readyz") == (503, NOT_REACHED)
            assert proxy.get("/livez") == (200, "live\n")
            assert proxy.get("/startupz") == (200, "started\n")
