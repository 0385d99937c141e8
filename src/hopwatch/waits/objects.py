"""How is an object of another thread read without running its code?

Every look goes past `__getattribute__`, `__class__`, properties and metaclasses, to slots and to the object's own dict.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import gc
import sys
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


mro = type.__dict__["__mro__"].__get__
namespace_of = type.__dict__["__dict__"].__get__
type_name = type.__dict__["__name__"].__get__


def _ids(*classes: type) -> frozenset[int]:
    # A class is looked up by its id, for its hash may be its metaclass's code. Classes of C are never collected.
    return frozenset(map(id, classes))


_SLOTS: Final = _ids(types.GetSetDescriptorType, types.MemberDescriptorType)
PLAIN: Final = _ids(
    str, bytes, int, float, bool, type(None), dict, type, types.ModuleType, types.FunctionType, types.CodeType,
    types.CoroutineType, types.FrameType, types.BuiltinFunctionType, types.CellType,
)  # fmt: skip
"""Ids of the types whose things hold nothing that is looked for."""

_PY_FUTURE: Final[Any] = getattr(asyncio.futures, "_PyFuture", asyncio.Future)
_PY_TASK: Final[Any] = getattr(asyncio.tasks, "_PyTask", asyncio.Task)
FUTURES: Final = (asyncio.Future, _PY_FUTURE)
TASK_TYPES: Final = (asyncio.Task, _PY_TASK)
GATHERING: Final[Any] = (getattr(asyncio.tasks, "_GatheringFuture", ()),)
TIMEOUT: Final[Any] = getattr(asyncio, "Timeout", None)  # 3.11
TASK_GROUP: Final[Any] = getattr(asyncio, "TaskGroup", ())  # 3.11


def module_of(cls: type) -> str:
    """Return the name of the module that a class says it is from."""
    name = type.__dict__["__module__"].__get__(cls)  # uvloop's classes do not have it in their namespace
    return name if type(name) is str else ""


def is_a(thing: object, classes: Any) -> bool:
    """Tell whether a thing is of a class, or of one of several."""
    # `isinstance` would ask a proxy for its `__class__`, which is code.
    return issubclass(type(thing), classes)


def is_slot(descriptor: object) -> bool:
    """Tell whether this is what C keeps a field with: reading through it runs no code."""
    return id(type(descriptor)) in _SLOTS


def is_chain_link(cls: type) -> bool:
    """Tell whether this is the type of a coroutine or generator of Python."""
    return cls is types.CoroutineType or cls is types.GeneratorType or cls is types.AsyncGeneratorType


def field_of(thing: object, name: str) -> Any:
    """Return an attribute that is stored, None for one that is missing or would have to be computed."""
    for cls in mro(type(thing)):
        namespace = namespace_of(cls)
        if name in namespace:
            found = namespace[name]
            if not is_slot(found) and any("__get__" in namespace_of(base) for base in mro(type(found))):
                return None
            break
    try:
        # Past `__getattr__`, and to nothing but a slot or the object's own dict.
        return object.__getattribute__(thing, name)
    except AttributeError:
        return None


# asyncio's tasks in C keep these where no subclass can hide them.
def _getter(cls: type, name: str) -> Callable[[object], Any] | None:
    slot: Any = namespace_of(cls).get(name)
    return slot.__get__ if is_slot(slot) else None


_get_waiter: Final = _getter(asyncio.Task, "_fut_waiter")
_get_coroutine: Final = _getter(asyncio.Task, "_coro")
_get_state: Final = _getter(asyncio.Future, "_state")
_get_loop: Final = _getter(asyncio.Future, "_loop")


def waits_for(task: object) -> Any:
    """Return the future that a task waits for."""
    if _get_waiter is not None and is_a(task, asyncio.Task):
        return _get_waiter(task)
    return field_of(task, "_fut_waiter")


def coroutine_of(task: object) -> Any:
    """Return what a task runs."""
    if _get_coroutine is not None and is_a(task, asyncio.Task):
        return _get_coroutine(task)
    return field_of(task, "_coro")


def loop_of(task: object) -> Any:
    """Return the loop that a task or future belongs to."""
    if _get_loop is not None and is_a(task, asyncio.Future):
        return _get_loop(task)
    return field_of(task, "_loop")


def _state_of(future: object) -> object:
    if _get_state is not None and is_a(future, asyncio.Future):
        return _get_state(future)
    return field_of(future, "_state") if is_a(future, FUTURES) else None


def is_pending(future: object) -> bool:
    """Tell whether this is a future of asyncio that nobody has set. Others cannot be judged."""
    return _state_of(future) == "PENDING"


def has_ended(task: object) -> bool:
    """Tell whether a task or future is done."""
    return _state_of(task) in ("FINISHED", "CANCELLED")


def task_name(task: object) -> str | None:
    """Return the name of a task, as far as one can be told by."""
    # The name of a C task has no slot that Python sees; the unbound method reads it and is asyncio's own.
    name = asyncio.Task.get_name(task) if is_a(task, asyncio.Task) else field_of(task, "_name")  # type: ignore[arg-type]
    return str.__str__(name)[:200] if is_a(name, str) else None


def raw_referents(awaitable: object) -> list[Any]:
    """Return all that a suspended coroutine or generator refers to, its locals before its stack."""
    found = gc.get_referents(awaitable)
    if sys.version_info < (3, 11):  # there a coroutine refers to its frame, and the frame to its locals
        found = next((gc.get_referents(thing) for thing in found if type(thing) is types.FrameType), found)
    return found


def referents(awaitable: object) -> list[Any]:
    """Return what a suspended coroutine or generator refers to, with what its cells hold, but for plain values."""
    found = []
    for thing in raw_referents(awaitable):
        cls = type(thing)
        if cls is types.CellType:
            thing = content(thing)  # noqa: PLW2901
            cls = type(thing)
        if id(cls) not in PLAIN:
            found.append(thing)
    return found


def content(cell: types.CellType) -> Any:
    """Return what a cell of a closure holds, None if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def callbacks_of(future: object) -> Iterator[Any]:
    """Yield who is called when a future is done; at most 32 of them, for futures have had 70,066."""
    for thing in gc.get_referents(future):
        if type(thing) is list:
            for entry in thing[:32]:
                if type(entry) is tuple and entry:
                    yield entry[0]
        elif type(thing) is dict:  # asyncio's futures in pure Python
            entries = thing.get("_callbacks")
            if type(entries) is list:
                yield from (entry[0] for entry in entries[:32] if type(entry) is tuple and entry)
        else:
            yield thing


def cells_of(function: object) -> list[Any]:
    """Return what a function closes over."""
    return (
        [content(cell) for cell in function.__closure__ or ()] if type(function) is types.FunctionType else []
    )
