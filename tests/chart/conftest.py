"""helm, for every test of the chart. It is built with the test bed, so these tests carry the marker `cluster`, and a
machine without it fails them instead of passing without a look.
"""

from __future__ import annotations

import pytest

from chart.rendering import Helm, Object, find_helm


@pytest.fixture(scope="session")
def helm() -> Helm:
    path = find_helm()
    if path is None:
        pytest.fail("there is no helm: `make cluster-up` builds it, or put one on the PATH")
    return Helm(path)


@pytest.fixture(scope="session")
def default(helm: Helm) -> list[Object]:
    """What a release of the default values is made of."""
    return helm.render()
