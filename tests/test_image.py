"""
The image: what its Dockerfile says, and that the steps give a program that runs as a container runs it.

No container engine is needed. The steps are done on this machine, which takes packages from an index; so that part runs
where ``LONG_TESTS`` is 1.
"""

import json
import os
import re
import shutil
import smtplib
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from attrs import frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proxy import __version__
from proxy.settings import Settings
from tests.conftest import require_tool
from tests.operation.program import write_settings
from tests.support import contained, dockerfile
from tests.support.proxy_process import TOKEN, WAIT_SECONDS, settings
from tests.support.upstream import Upstream

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")
READ = dockerfile.read(TEXT)
IGNORED = dockerfile.Ignored((ROOT / ".dockerignore").read_text("utf-8"))
HOME, DATA = "/opt/cmail-proxy", "/var/lib/cmail-proxy"
PLACES = (HOME, DATA, "/build")
UID = 65532

builds = pytest.mark.long


# What the file says


def test_dockerfile_has_no_finding_of_hadolint() -> None:
    """Neither a rule of style nor one about the shell is broken, and none is switched off."""
    tool = require_tool("hadolint")
    line = [tool, "--no-color", "--disable-ignore-pragma", "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(line, capture_output=True, text=True, cwd="/", timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_image_runs_the_program_as_nobody() -> None:
    """Entry point without a shell, a user by number, the signal that the program waits for."""
    image = READ.image
    assert image.last("ENTRYPOINT").words == [f"{HOME}/bin/cmail-proxy"]
    assert image.last("ENTRYPOINT").text.startswith("[")  # no shell in between, which would keep the signal
    assert json.loads(image.last("CMD").text) == ["serve"]
    assert image.last("USER").text == f"{UID}:{UID}"
    assert image.steps.index(image.last("USER")) > max(image.steps.index(step) for step in image.of("RUN"))
    assert image.last("STOPSIGNAL").text == "SIGTERM"
    assert image.last("WORKDIR").text == DATA


def test_image_names_its_version_and_the_ports_of_the_settings() -> None:
    """The labels are those of this version, the ports the defaults."""
    labels = dockerfile.pairs(READ.image.last("LABEL").text)
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.title"] == "cmail-proxy"
    assert labels["org.opencontainers.image.licenses"] == distribution("cmail-proxy").metadata["License-Expression"]
    given = dockerfile.read(TEXT, {"VERSION": "9.9.9", "PYTHON_IMAGE": "mirror.example.com/python:3.13@sha256:0"})
    labels = dockerfile.pairs(given.image.last("LABEL").text)
    assert labels["org.opencontainers.image.version"] == "9.9.9"
    assert labels["org.opencontainers.image.base.name"] == "mirror.example.com/python:3.13@sha256:0"
    assert {stage.base for stage in given.stages} == {"mirror.example.com/python:3.13@sha256:0"}
    default = Settings()
    ports = {default.listeners[0].port, default.http.probes.port, default.http.public.port}
    assert {int(word) for word in READ.image.last("EXPOSE").words} == ports


def test_image_begins_with_a_pinned_base_of_a_python_we_support() -> None:
    """Both stages have the same base, of one minor version and one release of Debian."""
    (base,) = {stage.base for stage in READ.stages}
    found = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", base)
    assert found
    assert f"Programming Language :: Python :: {found[1]}" in distribution("cmail-proxy").metadata.get_all(
        "Classifier", []
    )


def test_build_takes_pinned_packages_alone_and_no_secret() -> None:
    """All that is downloaded has a hash; nothing that looks like a secret goes into a build."""
    downloads = [
        part
        for stage in READ.stages
        for step in stage.of("RUN")
        for part in step.text.split("&&")
        if "install " in part
    ]
    for part in downloads:
        if "uninstall" not in part:
            assert "--require-hashes" in part or "--no-index" in part, part
    assert len(downloads) >= 3
    names = [
        name
        for step in dockerfile.instructions(TEXT)
        if step[0] in ("ARG", "ENV")
        for name in dockerfile.pairs(step[1])
    ]
    assert len(names) > 5
    assert not [name for name in names if re.search("TOKEN|PASSWORD|SECRET|KEY|CMAIL_PROXY_", name)]
    copied = [word for stage in READ.stages for step in stage.of("COPY") for word in step.words[:-1]]
    assert "." not in copied


def test_build_is_given_only_what_it_copies() -> None:
    """A file that somebody has lying about here never gets into a build."""
    for path in (".env", "first.yaml", "var/tokens", ".git/config", ".venv/bin/python", "tests/node/node_modules/a",
                 "proxy/__pycache__/cli.cpython-313.pyc", "proxy/web/__pycache__", "charts/cmail-proxy/values.yaml",
                 "examples/cmail-proxy.yaml", "Dockerfile", "tests/test_image.py"):  # fmt: skip
        assert IGNORED(PurePosixPath(path)), path
    for path in ("proxy/cli.py", "proxy/web/probes.py", "mappings/mailgun.yaml", "README.md", "constraints.txt"):
        assert not IGNORED(PurePosixPath(path)), path


# The steps, done


@frozen
class Image:
    """
    The tree of the image.

    Attributes:
        root: Stands for ``/``.
        environ: What the image sets, and nothing else.
    """

    root: Path
    environ: dict[str, str]

    def at(self, path: str) -> Path:
        """A path of the image."""
        return self.root / path.lstrip("/")

    @property
    def program(self) -> Path:
        """The entry point."""
        return self.at(READ.image.last("ENTRYPOINT").words[0])

    def run(self, *arguments: str | Path, line: tuple[str | Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run the program, or another command line, to its end."""
        command = line or (self.program, *arguments)
        return contained.run(command, self.at(DATA), UID, environ=self.environ, cwd=self.at(DATA))

    @contextmanager
    def serving(self, config: Path) -> Iterator[dict[str, Any]]:
        """``serve`` with a settings file; gives its line ``listening``, and requires that SIGTERM ends it with 0."""
        log = self.root.parent / f"{config.stem}.log"
        with log.open("wb") as file:
            line = contained.command([self.program, "serve", "--config", config], self.at(DATA), UID)
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self.environ, cwd=self.at(DATA)
            )
        try:
            yield _event(process, log, "listening")
            assert contained.terminate(process) == 0, log.read_text("utf-8")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        assert "Traceback" not in log.read_text("utf-8")


def _event(process: subprocess.Popen[bytes], log: Path, name: str) -> dict[str, Any]:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        for line in log.read_text("utf-8").splitlines():
            if line.startswith("{") and line.endswith("}") and json.loads(line)["event"] == name:
                found: dict[str, Any] = json.loads(line)
                return found
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"no {name!r} in {log.read_text('utf-8')}")


def _python() -> str:
    """A Python that is new enough, can make environments, and that another user may run."""
    names = ("python3.13", "python3.12", "python3.11", "python3")
    found = [shutil.which(name, path=path) for name in names for path in (os.environ["PATH"], "/usr/bin")]
    for each in (getattr(sys, "_base_executable", sys.executable), *filter(None, found)):
        code = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
        switch = {"user": UID, "group": UID, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            if subprocess.run([each, "-c", code], cwd="/", capture_output=True, check=False, **switch).returncode == 0:  # type: ignore[call-overload]
                return str(each)
        except OSError:  # in a home of somebody
            continue
    return require_tool("a Python 3.11 with venv that everybody may run")


def _without_ours(*names: str) -> dict[str, str]:
    """The environment of this process, without what would lead Python or the program to what is here."""
    ours = ("PYTHON", "CMAIL_PROXY_", "COVERAGE", "VIRTUAL_ENV", "PIP_PYTHON", *names)
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@contextmanager
def built() -> Iterator[Image]:
    """Do the steps of all stages, as an engine does them."""
    builder, image = READ.stages
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-image-") as folder:
        top = Path(folder)
        top.chmod(0o755)
        context, base, root = top / "context", top / "base", top / "root"
        dockerfile.context(ROOT, IGNORED, context)
        subprocess.run([_python(), "-m", "venv", str(base)], env=_without_ours(), check=True, timeout=60)
        path = f"{base / 'bin'}:/usr/bin:/bin"
        dockerfile.Builder(root, context, {}, path, PLACES).do(builder, _without_ours("PATH"))
        # The next stage has an empty tree: what it does not copy is not there.
        root.rename(top / "builder")
        # Its one RUN is about the base image, which this machine has not.
        steps = [step for step in image.steps if step.keyword != "RUN"]
        final = dockerfile.Builder(root, context, {builder.name: top / "builder"}, "/usr/bin:/bin", PLACES)
        final.do(dockerfile.Stage(image.base, image.name, steps, image.environ), {})
        data = root / DATA.lstrip("/")
        for each in (root, *root.rglob("*")):
            if not each.is_symlink() and each != data:
                each.chmod(each.stat().st_mode & ~0o222)
        try:
            yield Image(root, final.environment(image))
        finally:
            subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)


@builds
@pytest.mark.timeout(600)
def test_image_built_by_its_steps_runs_contained() -> None:
    """
    The tree that the steps give runs by an unknown user, without a capability, its data folder alone writable.

    One test, because the tree takes half a minute to build.
    """
    with built() as image:
        _holds_what_is_needed_and_no_more(image)
        _cannot_be_written_to(image)
        _answers(image)
        _relays(image)
        _delivers(image)


def _holds_what_is_needed_and_no_more(image: Image) -> None:
    assert sorted(each.name for each in image.root.iterdir()) == ["opt", "var"]
    assert list(image.at(DATA).iterdir()) == []
    (packages,) = image.at(HOME).glob("lib/python3.*/site-packages")
    there: dict[str, Distribution] = {
        canonicalize_name(each.name): each for each in distributions(path=[str(packages)])
    }
    assert set(there) == _needed(there, "cmail-proxy", packages.parent.name.removeprefix("python"))
    assert sorted(each.name for each in (packages / "proxy" / "mappings").iterdir()) == sorted(
        each.name for each in (ROOT / "mappings").iterdir()
    )
    # Compiled, in the way that does not look at times: else each start would compile, and could not keep it.
    (tag,) = {each.name.split(".")[-2] for each in packages.glob("proxy/__pycache__/*.pyc")}
    for source in packages.rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", source  # PEP 552: hash-based, not checked
    texts = [
        each
        for each in image.root.rglob("*")
        if each.is_file() and str(image.root.parent / "context").encode() in each.read_bytes()
    ]
    assert texts == []  # nothing leads back to where it was built


def _needed(there: Mapping[str, Distribution], name: str, python: str) -> set[str]:
    """A package and all that it needs, as the metadata in the tree say it for a version of Python."""
    found = {name}
    for text in (there[name].requires or ()) if name in there else ():
        requirement = Requirement(text)
        here = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is None or requirement.marker.evaluate(here):
            found |= _needed(there, canonicalize_name(requirement.name), python)
    return found


def _cannot_be_written_to(image: Image) -> None:
    """The cage holds: else what follows would prove nothing."""
    places = [image.at(HOME), image.root]
    if contained.has_namespaces():
        places += [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), image.root.parent]  # noqa: S108  # to try them
    for place in places:
        done = image.run(line=("/bin/sh", "-c", 'touch "$0/mark" && rm "$0/mark"', place))
        assert done.returncode != 0, place
    done = image.run(line=("/bin/sh", "-c", 'touch "$0/mark" && rm "$0/mark" && id -u', image.at(DATA)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (f"{UID}\n" if os.geteuid() == 0 else f"{os.geteuid()}\n")


def _answers(image: Image) -> None:
    done = image.run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cmail-proxy, version {__version__}\n", "")
    config = write_settings(image.root.parent / "check.yaml", settings(2526))
    done = image.run("check", "--config", config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: ")
    done = image.run("sidecar-snippet")  # from files that are no code
    assert (done.returncode, done.stderr) == (0, "")
    # By its name alone, as operators type it in a running container.
    assert image.run(line=("/usr/bin/env", "cmail-proxy", "--version")).returncode == 0


def _relays(image: Image) -> None:
    """Two workers and a certificate of our own; a message by the program's own client, and one that an app wrote."""
    token = image.root.parent / "token"
    token.write_text(TOKEN, "utf-8")
    with Upstream() as upstream:
        values = settings(
            upstream.port,
            workers=2,
            data_dir=str(image.at(DATA)),
            listeners=[{"address": "127.0.0.1", "port": 0, "tls": "starttls"}],
            tls={"self_signed": True, "names": ["localhost"]},
            tokens=[{"name": "shop", "token_file": str(token)}],
        )
        with image.serving(write_settings(image.root.parent / "relay.yaml", values)) as listening:
            port = listening["listeners"][0]["port"]
            authority = image.at(DATA) / "tls" / "ca.pem"
            certificate = ("--tls", "starttls", "--ca-file", authority)
            message = ("--from", "app@example.com", "--to", "ann@example.net", "--field", "X-MC-Tags: welcome")
            done = image.run(
                "send-test", "--server", f"localhost:{port}", *certificate, "--token-file", token, *message
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert b"\r\nX-Cmail-GroupName: welcome\r\n" in upstream.taken[0].content
            with smtplib.SMTP("localhost", port, timeout=WAIT_SECONDS) as client:
                client.starttls(context=ssl.create_default_context(cafile=authority))
                client.login(TOKEN, TOKEN)
                fixture = ROOT / "fixtures" / "mailgun" / "05-tracking-off.eml"
                client.sendmail("app@example.com", ["reader@example.net"], fixture.read_bytes())
            assert upstream.taken[1].content.endswith(fixture.with_suffix(".expected.eml").read_bytes())


def _delivers(image: Image) -> None:
    """The sending core keeps its queue, its keys and its mailbox in the data folder, and finds its content workers."""
    values = settings(2526, data_dir=str(image.at(DATA)))
    values["deliver"] = {"via": "mailbox"}
    del values["relay"]
    page = "Content-Type: text/html\r\n"
    with image.serving(write_settings(image.root.parent / "deliver.yaml", values)) as listening:
        server = f"127.0.0.1:{listening['listeners'][0]['port']}"
        done = image.run("send-test", "--server", server, "--from", "app@example.com", "--to", "ann@example.net",
                         "--field", "X-Mailgun-Tag: welcome", "--field", page.strip())  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        mailbox = image.at(DATA) / "mailbox" / "new"
        until = time.monotonic() + WAIT_SECONDS
        while not (mailbox.is_dir() and any(mailbox.iterdir())):
            assert time.monotonic() < until
            time.sleep(0.02)
        (file,) = mailbox.iterdir()
        assert b"multipart/alternative" in file.read_bytes()  # a text part was made of the HTML
    done = image.run("report", "--config", image.root.parent / "deliver.yaml", "--json")
    assert json.loads(done.stdout)[0]["group"] == "welcome", done.stderr


@builds
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_pins_have_files_for_the_python_of_the_image(machine: str, tmp_path: Path) -> None:
    """Every pinned package can be had built, with a hash that we have, for both kinds of machine that matter."""
    version = READ.image.base.partition(":")[2].partition("-")[0]
    platforms = [
        f"--platform=manylinux_2_{minor}_{machine}" for minor in (36, 35, 34, 31, 28, 27, 24, 17)
    ]  # Debian 12: 2.36
    line = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check", "--no-deps"]
    line += ["--ignore-installed", "--target", str(tmp_path), "--implementation=cp", f"--python-version={version}"]
    line += [*platforms, f"--platform=manylinux2014_{machine}", "--only-binary=:all:", "--require-hashes"]
    done = subprocess.run(
        [*line, "-r", str(ROOT / "constraints.txt")], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
