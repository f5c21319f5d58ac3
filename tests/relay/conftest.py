"""The relay that most modules share, one for each of them."""

from collections.abc import Iterator

import pytest

from tests.relay.site import Relay, relay


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A proxy that all tests of a module may use."""
    with relay(tmp_path_factory.mktemp("relay"), relay={"reply_seconds": 15, "final_reply_seconds": 15}) as started:
        started.warm_up()
        yield started


@pytest.fixture
def here(shared: Relay) -> Relay:
    """The shared proxy, before a platform as it should be that has received nothing."""
    shared.restore()
    return shared
