"""
When octets leave: at once, or under load in a row with those of other connections.

A peer that sleeps has to be woken for what it is sent, on another processor mostly, and that is a good part of what
sending costs. It is woken once for all that is sent in a row, and many connections often have their other end in one
program: an app's pool, a platform. So under load octets wait for two turns of the event loop: as long as what is ready
at that moment takes, which is less than a millisecond for 20 connections.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache

_CROWDED_TURNS = 16  # without others, until one is taken to be alone
Send = Callable[[], None]


class Turns:
    """The turns of one event loop, as :func:`turns_of` gives them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._waiting: list[Send] = []
        self._asked = 0  # how often in the present turn
        self._crowded = 0  # for how many turns others are still to be expected

    def send(self, send: Send) -> None:
        """Have something sent: at once, or in a row with what else is sent where there was more to send lately."""
        self._asked += 1
        if self._asked == 1:
            self._call_soon(self._end)
        if self._crowded:
            self._waiting.append(send)
        else:
            send()

    def _end(self) -> None:
        self._crowded = _CROWDED_TURNS if self._asked > 1 else max(0, self._crowded - 1)
        self._asked = 0
        for send in self._waiting:
            self._call_soon(send)  # so that one that fails is its connection's trouble alone
        self._waiting.clear()


@lru_cache(1)  # a process has one event loop at a time
def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Give the one object that all connections of an event loop share."""
    return Turns(loop)
