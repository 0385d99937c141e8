"""Where are Prometheus's programs? On the path, or in the folder that HOPWATCH_PROMETHEUS names; as `make stack` finds them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

STACK = Path(__file__).parent.parent / "stack"


def module(name):
    """A module of the folder `stack`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"stack_{name}", STACK / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


programs = module("programs")


def command(program):
    """How it is started; the test is skipped where it is not installed."""
    return programs.command(needs(program))


def needs(program):
    """The path of `prometheus`, `promtool`, `alertmanager` or `amtool`; the test is skipped, by name, where it is not installed."""
    found = programs.find(program)
    if found is None:
        pytest.skip(
            f"Prometheus is not installed: {program} is neither on the path nor under HOPWATCH_PROMETHEUS"
        )
    return found
