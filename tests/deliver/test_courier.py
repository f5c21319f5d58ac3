"""Which limits of the settings a courier gets, and what the queue leaves alone because of them."""

from pathlib import Path
from typing import Any

import pytest

from proxy.deliver import courier as module
from proxy.deliver.courier import courier_of
from proxy.outbound.destinations import DestinationLimits, Destinations, Share
from proxy.settings import load
from tests.deliver.test_queue import DELIVERED, rig, until
from tests.operation.program import write_settings

SMARTHOST = {"via": "smarthost", "smarthost": {"host": "smtp.example.com"}}


@pytest.mark.parametrize(
    ("deliver", "workers", "share", "attempts", "per_host"),
    [
        ({"via": "mx"}, 1, Share(5, 0), 50, 20),
        ({"via": "mx", "per_destination": 6, "per_host": 9, "rate_per_destination": 8}, 2, Share(3, 4), 25, 5),
        (SMARTHOST, 1, Share(50, 0), 50, 0),
        ({**SMARTHOST, "connections": 8, "per_host": 1, "rate_per_destination": 3}, 1, Share(8, 3), 8, 0),
    ],
)
def test_limits_are_those_of_the_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deliver: dict[str, Any],
    workers: int,
    share: Share,
    attempts: int,
    per_host: int,
) -> None:
    """Each worker has its part of them; a smarthost is one host and one destination, so all connections are for it."""
    made: list[DestinationLimits] = []

    class Noted(Destinations):
        def __init__(self, hosts_of: Any, limits: DestinationLimits, *more: Any) -> None:
            made.append(limits)
            super().__init__(hosts_of, limits, *more)

    monkeypatch.setattr(module, "Destinations", Noted)
    config = write_settings(tmp_path / "settings.yaml", {"deliver": deliver, "workers": workers})
    courier_of(load(config, {}))
    (limits,) = made
    assert (limits.share, limits.attempts, limits.per_host) == (share, attempts, per_host)


async def test_destination_whose_host_is_busy_is_left_alone_until_it_is_not(tmp_path: Path) -> None:
    """It is neither asked for nor begun at once, while others are; and it is not taken for one that is out of order."""
    async with rig(tmp_path, lambda _: DELIVERED) as here:
        here.courier.full = {"busy.example"}
        await here.add("m1", "busy.example")
        await here.add("m2", "a.example")
        await until(lambda: here.watcher.outcomes["delivered"] == 1)
        recipients = (await here.history("m1")).item.recipients
        assert here.courier.tried == {"a.example": 1}
        assert not here.queue.reserve(recipients)
        assert recipients[0].attempts == 0
        here.courier.full = set()
        await until(lambda: here.watcher.outcomes["delivered"] == 2)
