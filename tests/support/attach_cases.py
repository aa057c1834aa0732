"""The configurations that most tests of attaching need."""

import pytest

from adapterx import AdapterConfig

SEQUENTIAL = AdapterConfig(bottleneck_dim=4)
PARALLEL = AdapterConfig(bottleneck_dim=4, placement="parallel")
FEED_FORWARD = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))
PLACEMENTS = pytest.mark.parametrize("config", [SEQUENTIAL, PARALLEL], ids=["sequential", "parallel"])
