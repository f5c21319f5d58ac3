"""The helms, for all tests of the chart."""

import pytest

from tests.chart.rendering import HELMS, Helm, helm


@pytest.fixture(params=HELMS)
def each_helm(request: pytest.FixtureRequest) -> Helm:
    """One helm after the other."""
    return helm(request.param)


@pytest.fixture(scope="session")
def newest() -> Helm:
    """The newest helm, where both do the same."""
    return helm()
