"""
A program run as a container engine would run it, without an engine: its own user, no capability, nothing writable.

As root, in mount and process namespaces of its own, where it is process 1 and all is mounted read-only but one folder.
As anybody else, or where namespaces are forbidden, in a tree whose write bits are gone, which proves less.
"""

import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import TOOL_PATH
from tests.support.proxy_process import WAIT_SECONDS

_SCRIPT = """
set -eu
writable=$1 uid=$2
shift 2
mount --make-rprivate /
mount --bind "$writable" "$writable"
awk '{ print $5 }' /proc/self/mountinfo | while read -r place; do
    [ "$place" = "$writable" ] || mount -o remount,bind,ro "$place" 2>/dev/null || true
done
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@functools.cache
def has_namespaces() -> bool:
    """Whether we may make namespaces."""
    if os.geteuid() != 0 or not shutil.which("unshare", path=TOOL_PATH) or not shutil.which("setpriv", path=TOOL_PATH):
        return False
    attempt = ["unshare", "--mount", "--pid", "--fork", "mount", "--make-rprivate", "/"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


def command(line: Sequence[str | Path], writable: Path, uid: int) -> list[str]:
    """The command line that runs another one contained: only *writable* may be written to, and it is *uid*."""
    if has_namespaces():
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return [*unshare, "/bin/sh", "-c", _SCRIPT, "contained", str(writable), str(uid), *map(str, line)]
    if os.geteuid() == 0:
        switch = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--no-new-privs"]
        return [*switch, *map(str, line)]
    return [*map(str, line)]


def run(
    line: Sequence[str | Path], writable: Path, uid: int, *, environ: dict[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command contained, to its end."""
    return subprocess.run(
        command(line, writable, uid),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environ,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def terminate(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM as an engine does, to the contained program alone, and give its exit code."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
    os.kill(int(children[0]) if has_namespaces() else process.pid, signal.SIGTERM)
    until = time.monotonic() + WAIT_SECONDS
    while process.poll() is None:
        if time.monotonic() > until:
            process.kill()
            process.wait()
            raise AssertionError("it did not end on SIGTERM")
        time.sleep(0.02)
    return process.returncode
