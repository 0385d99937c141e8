"""What can a task reach from its frames, what is it inside of, and whom does a future wake? Read without running their code."""

from __future__ import annotations

import asyncio
import gc
import types
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from hopwatch.waits.chain import CLEAR, walk
from hopwatch.waits.objects import (
    FUTURES,
    TASK_TYPES,
    callbacks_of,
    cells_of,
    coroutine_of,
    field_of,
    is_a,
    is_pending,
    raw_referents,
    type_name,
)

if TYPE_CHECKING:
    from hopwatch.waits.chain import Frame

OBJECTS: Final = 512
"""How many objects behind the frames of a task are asked whether they are what is looked for; beyond it, doubt."""


def cell_named(function: types.FunctionType, name: str) -> Any:
    """Return what a function has of an outer one under this name; None where it has none."""
    return dict(zip(function.__code__.co_freevars, cells_of(function), strict=False)).get(name)


def _frame_of(awaitable: Any) -> types.FrameType | None:
    cls = type(awaitable)
    frame: types.FrameType | None = None
    if cls is types.CoroutineType:
        frame = awaitable.cr_frame
    elif cls is types.GeneratorType:
        frame = awaitable.gi_frame
    elif cls is types.AsyncGeneratorType:
        frame = awaitable.ag_frame
    return frame


def names_in(frame: Frame) -> tuple[str, ...]:
    """The names of attributes and globals that the code of a frame has; none for asyncio's own."""
    seen = _frame_of(frame.awaitable) if frame.place > CLEAR else None
    return seen.f_code.co_names if seen is not None else ()


_LEAVING: Final = tuple(
    method
    for cls in (asyncio.Lock, asyncio.Semaphore, asyncio.Condition)
    if type(method := getattr(cls, "__aexit__", None)) is types.FunctionType
)


def times_inside(frames: list[Frame], lock: Any) -> int:
    """How many `async with` blocks of this lock a chain is inside of, or about to enter: their way out is on the stack."""
    times = 0
    for frame in frames:
        things = raw_referents(frame.awaitable)
        # From 3.14 the method and its object, one after the other.
        times += sum(
            1
            for method, thing in pairwise(things)
            if any(method is each for each in _LEAVING) and _is_or_guards(thing, lock)
        )
        times += sum(
            1
            for thing in things
            if type(thing) is types.MethodType
            and type(thing.__func__) is types.FunctionType
            and thing.__func__.__name__ == "__aexit__"
            and _is_or_guards(thing.__self__, lock)
        )
    return times


def _is_or_guards(thing: Any, lock: Any) -> bool:
    return thing is lock or (is_a(thing, asyncio.Condition) and field_of(thing, "_lock") is lock)


_CLOSED: Final = (
    type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, types.FrameType, str, bytes, int, float,
    type(None), asyncio.AbstractEventLoop, *FUTURES,
)  # fmt: skip


def refers_to(task: Any, wanted: Any) -> bool:
    """Whether a task can reach an object from its frames: by a local or a global, or from there by a few attributes or items."""
    frames, lost = walk(coroutine_of(task))
    if lost:
        return True
    todo: deque[tuple[Any, int]] = deque()
    seen: set[int] = set()
    for each in frames:
        frame = _frame_of(each.awaitable)
        if frame is None:
            continue
        names = frame.f_globals
        if any(thing is wanted for thing in list(names.values())):
            return True
        seen.update((id(names), id(frame.f_builtins)))  # 3.10 has them among what a frame refers to
        todo.extend((thing, 0) for thing in raw_referents(each.awaitable))
    while todo:
        thing, depth = todo.popleft()
        if thing is wanted:
            return True
        if id(thing) in seen or is_a(thing, _CLOSED):
            continue
        seen.add(id(thing))
        if len(seen) > OBJECTS + 2 * len(frames):
            return True
        cls = type(thing)
        if cls is types.FunctionType:
            inside = cells_of(thing)
        elif cls is types.CellType or cls is types.MethodType or cls is dict:
            inside = gc.get_referents(thing)
        elif depth >= 3:
            continue
        else:
            inside = gc.get_referents(thing)
            depth += 1
        todo.extend((one, depth) for one in inside)
    return False


def awaiting(future: Any, depth: int = 0) -> list[Any]:
    """The tasks that a future wakes: those that await it, gather it, or have it in a task group."""
    out: list[Any] = []
    for callback in callbacks_of(future):
        cls = type(callback)
        acted_on: list[Any] = []
        if cls is types.FunctionType:
            acted_on = cells_of(callback)
        elif cls is types.MethodType or cls is types.BuiltinMethodType:
            acted_on = [callback.__self__]
        elif type_name(cls) == "partial":
            acted_on = [*callback.args]
        for thing in acted_on:
            if is_a(thing, TASK_TYPES):
                if thing is not future:
                    out.append(thing)
            elif is_a(thing, FUTURES):
                if depth < 4 and is_pending(thing) and thing is not future:
                    out.extend(awaiting(thing, depth + 1))
            else:
                scope = field_of(thing, "cancel_scope")  # of anyio's task group
                parents = (field_of(thing, "_parent_task"), field_of(scope, "_host_task"))
                out.extend(parent for parent in parents if is_a(parent, TASK_TYPES))
    return out
