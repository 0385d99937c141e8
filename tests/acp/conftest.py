"""Fixtures of the stories with agent-client-protocol: asyncio and the library are instrumented while a module runs."""

import logging
from importlib import metadata

import pytest

from hopwatch.instrumentation.acp import ACPInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

if not [*metadata.distributions(name="agent-client-protocol")]:  # tests/test_acp_installed.py says so
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def acp_instrumented():
    AsyncioInstrumentor().instrument()
    ACPInstrumentor().instrument()
    yield
    ACPInstrumentor().uninstrument()
    AsyncioInstrumentor().uninstrument()


@pytest.fixture(autouse=True)
def quiet(caplog):
    """What the library logs of errors that a story is about does not fill the report."""
    caplog.set_level(logging.CRITICAL + 1)
