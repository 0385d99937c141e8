"""What of a2a-sdk is wrapped in which release, and what happens in a release that has moved some of it?"""

import importlib
import types

import pytest

from exported import fresh
from hopwatch import process
from hopwatch.instrumentation import a2a, a2a_seams
from hopwatch.instrumentation.a2a import A2AInstrumentor

HERE = a2a_seams.installed()
DUE = [seam for seam in a2a_seams.SEAMS if seam.is_due(HERE)]


@pytest.fixture
def instrumentor():
    fresh()
    made = A2AInstrumentor()
    made.instrument()
    yield made
    made.uninstrument()
    assert process.failures == {}


def test_the_installed_release_has_all_that_it_ought_to_have_by_its_sources_and_by_its_classes(instrumentor):
    assert a2a_seams.missing(a2a_seams.folder(), HERE) == []
    for name in a2a_seams.modules():
        if any(seam.module == name for seam in DUE):
            importlib.import_module(name)
    assert a2a.missing == []


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("1.3.0", (1, 3, 0)),
        ("0.3.26", (0, 3, 26)),
        ("2.0.0rc1", (2, 0, 0)),
        ("1.4.0.dev3", (1, 4, 0)),
        ("main", ()),
        (None, ()),
    ],
)
def test_a_release_is_the_numbers_at_the_beginning_of_its_version(version, release):
    assert a2a_seams.release_of(version) == release


def test_each_release_is_due_the_seams_of_its_engines():
    def owners(*release):
        return {seam.owner for seam in a2a_seams.SEAMS if seam.is_due(release)}

    assert {"DefaultRequestHandler", "EventQueue"} <= owners(0, 3, 22) == owners(0, 3, 26) == owners(0, 3, 1)
    assert {"LegacyRequestHandler", "DefaultRequestHandlerV2", "EventQueueLegacy", "ActiveTask"} <= owners(
        1, 0, 0
    )
    assert "DefaultRequestHandler" not in owners(1, 0, 0)
    # A release that nobody knows ought to have what the newest has, and one that cannot be told is looked for all of it.
    assert owners(7, 1) == owners(1, 3, 0)
    assert owners() == {seam.owner for seam in a2a_seams.SEAMS}
    names = {
        release: {seam.name for seam in a2a_seams.SEAMS if seam.is_due(release)}
        for release in ((1, 0, 0), (1, 1, 5))
    }
    assert "_process_event" not in names[1, 0, 0]
    assert "dequeue_event" not in names[1, 1, 5]


@pytest.mark.parametrize("seam", DUE, ids=str)
def test_a_seam_that_a_release_does_not_have_is_named_and_nothing_is_raised(seam, instrumentor):
    others = {
        each.name: lambda *_: None for each in DUE if (each.module, each.owner) == (seam.module, seam.owner)
    }
    del others[seam.name]
    module = types.ModuleType(seam.module)
    owner = type(seam.owner, (), {name: staticmethod(function) for name, function in others.items()})
    if seam.name == "__init__":
        owner = _NoInit(seam.owner, others)
    owner.__module__ = __name__
    setattr(module, seam.owner, owner)
    del a2a.missing[:]
    instrumentor._module(seam.module, module)
    assert str(seam) in a2a.missing
    assert process.failures == {}


class _NoInit:
    """A class whose `__init__` cannot be had: what is not a class has no attributes but these."""

    def __init__(self, name, others):
        self.__dict__.update(others)
        self.__qualname__ = name

    def __getattribute__(self, name):
        if name == "__init__":
            raise AttributeError(name)
        return object.__getattribute__(self, name)


def test_a_module_that_has_lost_its_classes_is_told_of_and_nothing_is_raised(instrumentor):
    del a2a.missing[:]
    for name in a2a_seams.modules():
        instrumentor._module(name, types.ModuleType(name))
    assert a2a.missing == [str(seam) for name in a2a_seams.modules() for seam in DUE if seam.module == name]
    assert process.failures == {}
