"""A parent process, for the tests of the supervisor: runs the crew that its argument describes; logs to stdout."""

import asyncio
import json
import os
import sys
from pathlib import Path

import uvloop

from proxy.listening import BindError
from proxy.record.log import Log
from proxy.supervisor import Crew, Patience, supervise

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if asked.pop("uvloop", False):
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    crew = Crew(
        workers=asked["workers"],
        command=asked.get("command", [sys.executable, str(Path(__file__).with_name("crew_worker.py"))]),
        environment=os.environ,
        listeners=[(address, port) for address, port in asked["listeners"]],
        probes=("127.0.0.1", asked.get("probes", 0)),
        stop_seconds=asked.get("stop_seconds", 10),
        patience=Patience(**asked.get("patience", {})),
    )
    with open(1, "wb", buffering=0, closefd=False) as output:
        try:
            sys.exit(asyncio.run(supervise(crew, Log("debug", "json", output))))
        except BindError as error:
            sys.exit(f"cannot listen:\n{error}")
