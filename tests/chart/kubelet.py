"""
A pod of the chart, run on this machine from nothing but its manifest, as kubelet runs it.

What is taken from the manifest: arguments, environment, mounts with their modes, ports, probes, user, grace period. The
entry point and the variables of the image are those of the Dockerfile. ConfigMaps and Secrets are written as kubelet
writes them: a folder with a name of its own for each state, a link ``..data`` to it that is turned in one step.

What is otherwise than in a cluster, everywhere alike (arguments, variables, texts of ConfigMaps):

- The path of a mount becomes that of a folder below a temporary one: nobody mounts here.
- 0.0.0.0 and 127.0.0.1 become one address of 127.0.0.0/8, drawn for the pod, so that its ports are the real ones though
  other pods run beside it. So every listener is on loopback here.
- Probes are tried without pause, but no longer than period and threshold allow.

As root it runs as the user of the manifest, without a capability, with nothing writable but emptyDirs and claims.
"""

import functools
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.chart.rendering import Object, Pod
from tests.docs.pages import ROOT
from tests.support import contained, dockerfile
from tests.support.proxy_process import WAIT_SECONDS

IMAGE = dockerfile.read((ROOT / "Dockerfile").read_text("utf-8")).image
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

_LISTEN = re.compile(r"(?<![\d.])(?:0\.0\.0\.0|127\.0\.0\.1)(?![\d.])")
_states = itertools.count(1)


def address() -> str:
    """Draw an address of this machine's own that hardly anybody else uses at the moment."""
    return "127." + ".".join(str(1 + secrets.randbelow(254)) for _ in range(3))


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that every user may look into, other than those of pytest."""
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-pod-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@functools.cache
def _separate(uid: int) -> bool:
    """Whether the program can be run as somebody else: it may be installed where that user cannot look."""
    with folder() as empty:
        line = contained.command([sys.executable, "-c", "import proxy.cli"], empty, uid)
        return subprocess.run(line, cwd="/", capture_output=True, check=False).returncode == 0


def config_map(name: str, data: Mapping[str, str]) -> Object:
    """A ConfigMap that somebody else keeps."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data)}


def secret(name: str, data: Mapping[str, str]) -> Object:
    """A Secret that somebody else keeps."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(data)}


class RunningPod:
    """
    A pod on this machine; use it as a context manager, which ends what still runs.

    Args:
        pod: From the manifest.
        objects: The ConfigMaps, Secrets and Services of its namespace.
        home: Where its volumes are; the claims in it outlive the pod.
        at: Its address; one is drawn where it is empty.

    Attributes:
        address: Where its ports are.
        objects: What is in the namespace, by kind and name.
    """

    def __init__(self, pod: Pod, objects: Sequence[Object], home: Path, at: str = "") -> None:
        self.pod = pod
        self.address = at or address()
        self.objects = {(each["kind"], each["metadata"]["name"]): each for each in objects}
        self._home = home
        self._containers: list[Container] = []
        claims = pod.owner["spec"].get("volumeClaimTemplates", ())
        self._volumes: dict[str, Object] = {each["name"]: each for each in pod.spec.get("volumes", ())}
        for claim in claims:
            name = claim["metadata"]["name"]
            self._volumes[name] = {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-0"}}
        self._places = {
            mount["mountPath"]: self._folder(mount["name"])
            for container in pod.containers
            for mount in container.get("volumeMounts", ())
        }
        for name in self._volumes:
            self._make(name)
        self.sync()

    def __enter__(self) -> "RunningPod":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container in self._containers:
            container.kill()
        for name, volume in self._volumes.items():
            if "persistentVolumeClaim" not in volume:
                shutil.rmtree(self._folder(name))

    def container(self, name: str = "cmail-proxy") -> "Container":
        """Make a container of the pod ready to be started."""
        made = Container(self, self.pod.container(name))
        self._containers.append(made)
        return made

    @property
    def writable(self) -> Path:
        """The folder that has all volumes that may be written to."""
        return self._home / "writable"

    def here(self, text: str) -> str:
        """A text as it must be on this machine."""
        if self._places:  # in one go, because a temporary folder may have such names in it, too
            paths = "|".join(re.escape(path) for path in sorted(self._places, reverse=True))
            found = re.compile(rf"(?<![\w./-])(?:{paths})(?![\w.-])")
            text = found.sub(lambda match: str(self._places[match[0]]), text)
        return _LISTEN.sub(self.address, text)

    def find(self, kind: str, reference: Mapping[str, Any], name: str = "name") -> Object | None:
        """An object that a manifest names; None where it is not there and need not be."""
        found = self.objects.get((kind, reference[name]))
        if found is None and not reference.get("optional"):
            raise AssertionError(f"no {kind} {reference[name]}")
        return found

    def change(self, changed: Object) -> None:
        """Put an object into the place of another; kubelet notices, and turns the links."""
        self.objects[changed["kind"], changed["metadata"]["name"]] = changed
        self.sync()

    # Volumes

    def _folder(self, name: str) -> Path:
        volume = self._volumes[name]
        return self._home / ("writable" if {"emptyDir", "persistentVolumeClaim"} & set(volume) else "volumes") / name

    def _make(self, name: str) -> None:
        place = self._folder(name)
        place.mkdir(parents=True, exist_ok="persistentVolumeClaim" in self._volumes[name])
        if place.parent == self.writable:
            place.chmod(0o777)
            self._give_to_group(place, 0o2070)

    def _give_to_group(self, path: Path, mode: int) -> None:
        group = self.pod.spec.get("securityContext", {}).get("fsGroup")
        if group is not None and os.geteuid() == 0:
            os.chown(path, -1, group)
            path.chmod(path.stat().st_mode | mode)

    def sync(self) -> None:
        """Write ConfigMaps and Secrets that changed, in one step for each volume."""
        for name in self._volumes:
            files = dict(self._files(self._volumes[name]))
            if files:
                self._turn(self._folder(name), files)

    def _files(self, volume: Object) -> Iterator[tuple[str, tuple[bytes, int]]]:
        name, kind = volume["name"], next(key for key in volume if key != "name")
        source = volume[kind]
        mode = source.get("defaultMode", 0o644) if source else 0
        if kind == "configMap":
            yield from self._payload("ConfigMap", source, mode)
        elif kind == "secret":
            yield from self._payload("Secret", {**source, "name": source["secretName"]}, mode)
        elif kind == "projected":
            for each in source["sources"]:
                ((part, reference),) = each.items()
                yield from self._payload({"configMap": "ConfigMap", "secret": "Secret"}[part], reference, mode)
        elif kind not in ("emptyDir", "persistentVolumeClaim"):
            raise AssertionError(f"volume {name}: {kind} is not known here")

    def _payload(self, kind: str, reference: Object, mode: int) -> Iterator[tuple[str, tuple[bytes, int]]]:
        found = self.find(kind, reference)
        data = content(found) if found else {}
        items = reference.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            octets = data[item["key"]]  # kubelet does not start a container whose key is missing
            if kind == "ConfigMap":
                octets = self.here(octets.decode()).encode()
            yield item["path"], (octets, item.get("mode", mode))

    def _turn(self, place: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Do as the AtomicWriter of Kubernetes: new folder, link ..data turned by renaming, old folder removed."""
        link = place / "..data"
        before = link.resolve() if link.is_symlink() else None
        if before and {each.name: each.read_bytes() for each in before.iterdir()} == {
            name: octets for name, (octets, _) in files.items()
        }:
            return
        state = place / f"..2026_11_26_06_00_00.{next(_states):09}"
        state.mkdir(mode=0o755)
        for name, (octets, mode) in files.items():
            (state / name).write_bytes(octets)
            (state / name).chmod(mode)
            self._give_to_group(state / name, 0o440)
        new = place / "..data_tmp"
        new.symlink_to(state.name)
        new.rename(link)
        for name in files:
            if not (place / name).is_symlink():
                (place / name).symlink_to(Path("..data") / name)
        if before:
            for name in {each.name for each in before.iterdir()} - set(files):
                (place / name).unlink()
            shutil.rmtree(before)


def content(found: Object) -> dict[str, bytes]:
    """What a ConfigMap or Secret holds."""
    plain = {**found.get("stringData", {}), **(found.get("data", {}) if found["kind"] == "ConfigMap" else {})}
    encoded = found.get("data", {}) if found["kind"] == "Secret" else {}
    return {key: text.encode() for key, text in plain.items()} | {key: b64decode(each) for key, each in encoded.items()}


class Container:
    """
    A container of a pod.

    Attributes:
        ports: By name.
        environ: All its variables.
    """

    def __init__(self, running: RunningPod, spec: Object) -> None:
        self.spec = spec
        self._pod = running
        self.ports: dict[str, int] = {each["name"]: each["containerPort"] for each in spec.get("ports", ())}
        self.environ = dict(self._environ())
        self._log = running._home / f"{spec['name']}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _environ(self) -> Iterator[tuple[str, str]]:
        pod = self._pod
        yield from ((name, value) for name, value in IMAGE.environ.items() if name != "PATH")
        yield "PATH", os.defpath
        if pod.pod.spec.get("enableServiceLinks", True):
            yield from self._service_links()
        for source in self.spec.get("envFrom", ()):
            ((part, reference),) = [each for each in source.items() if each[0] != "prefix"]
            found = pod.find({"configMapRef": "ConfigMap", "secretRef": "Secret"}[part], reference)
            for key, value in content(found).items() if found else ():
                yield source.get("prefix", "") + key, value.decode()
        for each in self.spec.get("env", ()):
            if "valueFrom" not in each:
                yield each["name"], pod.here(each.get("value", ""))
                continue
            ((part, reference),) = each["valueFrom"].items()
            found = pod.find({"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}[part], reference)
            if found:
                yield each["name"], content(found)[reference["key"]].decode()

    def _service_links(self) -> Iterator[tuple[str, str]]:
        """What kubelet tells each container of the namespace's Services."""
        for (kind, name), service in self._pod.objects.items():
            if kind == "Service" and service["spec"].get("clusterIP") != "None":
                prefix, port = name.upper().replace("-", "_"), service["spec"]["ports"][0]["port"]
                yield f"{prefix}_SERVICE_HOST", "10.96.0.7"
                yield f"{prefix}_SERVICE_PORT", str(port)
                yield f"{prefix}_PORT", f"tcp://10.96.0.7:{port}"
                yield f"{prefix}_PORT_{port}_TCP_ADDR", "10.96.0.7"

    @property
    def user(self) -> int:
        """By whom it is run."""
        context = {**self._pod.pod.spec.get("securityContext", {}), **self.spec.get("securityContext", {})}
        return int(context["runAsUser"])

    def line(self, *arguments: str) -> list[str]:
        """The command line: of the manifest, or the entry point with other arguments."""
        words = [self._pod.here(word) for word in arguments or self.spec.get("args", ())]
        if "command" in self.spec and not arguments:
            program = {"python": [sys.executable]}[self.spec["command"][0]] + self.spec["command"][1:]
            words = [self._pod.here(word) for word in program] + words
        else:
            entry = Path(IMAGE.last("ENTRYPOINT").words[0]).name
            words = [str(Path(sys.executable).with_name(entry)), *words]
        return contained.command(words, self._pod.writable, self.user) if _separate(self.user) else words

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end; with arguments, do as ``kubectl exec`` with the entry point and them."""
        self._pod.writable.mkdir(exist_ok=True)
        return subprocess.run(
            self.line(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environ,
            cwd="/",
            timeout=WAIT_SECONDS * 2,
            check=False,
        )

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.line(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ, cwd="/"
            )

    @property
    def log(self) -> str:
        """All that it wrote, and its forerunners with it."""
        return self._log.read_text("utf-8", "replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines with that event."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    # Probes

    def get(self, path: str, port: str, seconds: float = WAIT_SECONDS) -> tuple[int, str]:
        """Fetch a page from a port of the container."""
        url = f"http://{self._pod.address}:{self.ports[port]}{path}"
        try:
            with urllib.request.urlopen(url, timeout=seconds) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def probe(self, name: str) -> bool:
        """Try a probe once."""
        probe = self.spec[name]
        try:
            status, _ = self.get(probe["httpGet"]["path"], probe["httpGet"]["port"], probe.get("timeoutSeconds", 1))
        except OSError:  # nobody there, or too late
            return False
        return 200 <= status < 400

    def wait_for(self, name: str, expected: bool = True) -> None:
        """Try a probe until it works, or fails, as long as the manifest allows."""
        probe = self.spec[name]
        until = time.monotonic() + probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        while self.probe(name) is not expected:
            if self.ended() or time.monotonic() > until:
                raise AssertionError(f"{name} is not {expected}: {self.log}")
            time.sleep(0.02)

    def come_up(self) -> None:
        """Start it, and try the probes in kubelet's order: readiness and liveness count once it has started."""
        self.start()
        for name in PROBES:
            self.wait_for(name)

    # Its end

    def terminate(self) -> None:
        """Send SIGTERM, as kubelet does at the end of a pod."""
        assert self._process is not None
        pid = self._process.pid
        if _separate(self.user) and contained.has_namespaces():
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()[0])
        os.kill(pid, signal.SIGTERM)

    def ended(self) -> bool:
        """Whether it is over."""
        assert self._process is not None
        return self._process.poll() is not None

    def wait_for_end(self) -> int:
        """Wait for the end as long as the pod has; the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(self._pod.pod.spec.get("terminationGracePeriodSeconds", 30))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"killed at the end of the grace period: {self.log}") from None

    def kill(self) -> None:
        """End it at once, where it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(WAIT_SECONDS)
