"""The event loop of generator and sink: uvloop where there is one, as for the proxy itself."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):  # platforms without uvloop
        from uvloop import new_event_loop as factory

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
