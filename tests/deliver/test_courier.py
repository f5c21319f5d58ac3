"""Which limits of the settings a courier gets, and what the queue leaves alone because of them."""

from pathlib import Path
from typing import Any

import pytest

from proxy.deliver import courier as module
from proxy.deliver.courier import courier_of, fits, route_of
from proxy.outbound.destinations import DestinationLimits, Destinations, Share
from proxy.settings import load
from proxy.spool.item import State
from tests.deliver.plant import Plant, eventually
from tests.deliver.test_queue import DELIVERED, rig, until
from tests.operation.program import write_settings
from tests.support.upstream import Upstream

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


SETTINGS: dict[str, dict[str, Any]] = {"mailbox": {"via": "mailbox"}, "smarthost": SMARTHOST, "mx": {"via": "mx"}}


@pytest.mark.parametrize("then", SETTINGS)
@pytest.mark.parametrize("now", SETTINGS)
def test_destinations_of_other_settings_do_not_fit(tmp_path: Path, then: str, now: str) -> None:
    """Where mail waits that came under other settings, each kind is told from the others; a domain is none of them."""
    made = [load(write_settings(tmp_path / f"{via}.yaml", {"deliver": SETTINGS[via]}), {}) for via in (then, now)]
    destination = route_of(made[0])("ann@Example.NET")
    assert destination is not None
    assert fits(made[1])(destination) is (then == now)
    assert fits(made[1])(route_of(made[1])("ann@example.net") or "") is True


def test_what_waits_follows_the_settings_at_the_next_start(tmp_path: Path) -> None:
    """Kept for the mailbox folder, then sent to a server: it is neither lost nor bounced, nor is its address blamed."""
    with Upstream() as upstream:
        deliver: dict[str, Any] = {"via": "mailbox"}
        with Plant(tmp_path, deliver) as plant:
            message_id = plant.send(head=b"X-MC-SendAt: 2100-01-01 00:00:00\r\n")
            assert plant.proxy.stop() == 0
            deliver |= {"via": "smarthost", "smarthost": {"host": "127.0.0.1", "port": upstream.port, "tls": "none"}}
            plant.start()
            assert plant.proxy.event("queue_opened")["redirected"] == 1
            plant.retry()
            eventually(lambda: plant.recipient(message_id).state is State.DELIVERED, "delivered")
            assert len(upstream.taken) == 1
            assert plant.proxy.stop() == 0


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
