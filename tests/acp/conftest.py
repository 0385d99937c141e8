"""Fixtures of the stories with agent-client-protocol: asyncio and the library are instrumented while a module runs."""

import logging

import pytest

pytest.importorskip("acp", reason="agent-client-protocol is not installed here")

from hopwatch.instrument.acp import ACPInstrumentor
from hopwatch.instrument.asyncio import AsyncioInstrumentor


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
