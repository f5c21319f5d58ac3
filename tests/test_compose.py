"""The Compose file: lawful, closed to other machines, and its settings and commands do what it says."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from tests.conftest import require_tool
from tests.docs.pages import README, block
from tests.operation.program import run
from tests.support.proxy_process import ProxyProcess
from tests.support.upstream import Upstream

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yaml"
TEXT = FILE.read_text("utf-8")
PROXY: dict[str, Any] = yaml.safe_load(TEXT)["services"]["proxy"]
CATCHER: dict[str, Any] = yaml.safe_load(TEXT)["services"]["catcher"]
SETTINGS = ROOT / "examples" / "compose.yaml"


def commands(text: str) -> list[list[str]]:
    """The command lines in a text of them, parted into words."""
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def test_file_is_lawful() -> None:
    """The reference implementation of the format takes the file, and so would `docker compose config`."""
    line = [require_tool("compose-spec"), "--format", "json", str(FILE)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert sorted(services) == ["catcher", "proxy"]
    (mounted,) = (each for each in services["proxy"]["volumes"] if each["type"] == "bind")
    assert (mounted["source"], mounted["read_only"]) == (str(SETTINGS), True)


@pytest.mark.parametrize("service", [PROXY, CATCHER], ids=["proxy", "catcher"])
def test_services_may_do_little_and_are_reached_from_here_only(service: dict[str, Any]) -> None:
    """Read-only root, no capability, no way to more, ports on 127.0.0.1, an image with a version."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"])
    assert not {"privileged", "network_mode", "pid", "devices"} & set(service)


def test_proxy_is_of_this_version_and_has_time_to_end() -> None:
    """The image has the name of this version; Compose waits longer than the proxy drains."""
    assert PROXY["image"] == f"cmail-proxy:{__version__}"
    assert PROXY["stop_grace_period"] == "40s"  # more than shutdown.drain_seconds, which is 30


def test_settings_pass_check_and_fit_the_file() -> None:
    """The settings are lawful; ports, folders and the catcher's name are those of the Compose file."""
    done = run("check", "--config", SETTINGS)
    assert done.returncode == 0, done.stderr
    warned = [line.partition("compose.yaml:")[2] for line in done.stderr.decode().splitlines()]
    assert warned == ["5: listeners[0].auth_without_tls: passwords may cross the network in clear"]
    values = yaml.safe_load(SETTINGS.read_text("utf-8"))
    inner = {int(port.rpartition(":")[2]) for port in PROXY["ports"]}
    assert inner == {values["listeners"][0]["port"], values["http"]["probes"]["port"]}
    source, target, mode = PROXY["volumes"][0].split(":")
    assert (ROOT / source).resolve() == SETTINGS
    assert (target, mode) == (PROXY["environment"]["CMAIL_PROXY_CONFIG"], "ro")
    assert PROXY["volumes"][1].partition(":")[2] == values["data_dir"]
    assert PROXY["environment"]["CMAIL_PROXY_TEST_TOKEN"] == values["tokens"][0]["token"]
    assert values["relay"]["host"] in PROXY["depends_on"]
    assert f"127.0.0.1:{values['http']['probes']['port']}/readyz" in PROXY["healthcheck"]["test"][-1]


def test_command_of_readme_and_file_sends_a_message_that_the_catcher_gets_translated(tmp_path: Path) -> None:
    """With these settings and this environment the line that both give works as it stands."""
    start, send = commands(block(README, "sh", "compose"))
    comment = "\n".join(line.removeprefix("#     ") for line in TEXT.splitlines() if line.startswith("#     "))
    assert commands(comment) == [start, send]
    assert start == ["docker", "compose", "up", "--build", "--detach"]
    assert send[:5] == ["docker", "compose", "exec", "proxy", "cmail-proxy"]
    values = yaml.safe_load(SETTINGS.read_text("utf-8"))
    values["listeners"][0] |= {"address": "127.0.0.1", "port": 0}
    values["http"]["probes"] |= {"address": "127.0.0.1", "port": 0}
    values |= {"data_dir": str(tmp_path / "var"), "log": {"format": "json"}}
    environ = {name: value for name, value in PROXY["environment"].items() if name != "CMAIL_PROXY_CONFIG"}
    with Upstream() as catcher:
        values["relay"] |= {"host": "127.0.0.1", "port": catcher.port}
        with ProxyProcess(tmp_path, values, environ) as proxy:
            done = run(*send[5:], "--server", f"127.0.0.1:{proxy.port}", environ=environ)
            assert done.returncode == 0, done.stderr
            assert b"\r\nX-Cmail-GroupName: welcome\r\n" in catcher.taken[0].content
            assert proxy.get("/readyz")[0] == 200
