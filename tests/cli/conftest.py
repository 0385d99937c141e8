"""A collector that says what a test wants."""

from __future__ import annotations

import pytest
from canned_cascades import CannedCollector, running


@pytest.fixture
def collector():
    with running(CannedCollector()) as one:
        yield one
