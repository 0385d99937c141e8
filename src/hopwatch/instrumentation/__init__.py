"""Which attributes of other people's classes are replaced, and how are they put back?"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import weakref
from asyncio import coroutines
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import wrapt

from hopwatch.process import failed, in_place

if TYPE_CHECKING:
    from collections.abc import Callable

_ABSENT = object()


def _be_as(original: Any, replacement: Any) -> None:
    """Have what hands on a coroutine pass for a coroutine function, if that is what it stands for.

    Mocks with a `spec`, and frameworks that take both kinds, ask for it. `inspect` can be told only from Python 3.12 on, and asyncio before.
    """
    try:
        if not inspect.iscoroutinefunction(original) or inspect.iscoroutinefunction(replacement):
            return
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(replacement)
        else:
            replacement._is_coroutine = coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
    except Exception:  # noqa: BLE001 - it is worth having without
        failed("instrument.kind")


def _shows_its_kind(function: Any) -> bool:
    """Whether `inspect` asks a function's code what kind it is of, so that only a proxy can pass for it."""
    return inspect.isasyncgenfunction(function) or (
        sys.version_info < (3, 12) and inspect.iscoroutinefunction(function)
    )


class BoundWrapper(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    """A method that is wrapped, bound to its object."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A method; or, as `weakref.WeakMethod` makes one anew, that of a function and its object."""
        if len(args) == 2:
            function, instance = args
            return getattr(instance, function.__name__)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > 2:
            super().__init__(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._self_instance is None:
            owner = getattr(self, "_self_owner", None)  # wrapt 2
            return (getattr, (owner, self.__name__)) if owner is not None else self.__qualname__
        return getattr, (self._self_instance, self.__name__)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._self_instance is None:
            return self
        return getattr(copy.deepcopy(self._self_instance, memo), self.__name__)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


class Wrapper(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A function that is wrapped, and can be pickled and referred to weakly where the function itself could."""

    __bound_function_wrapper__ = BoundWrapper


def named(coroutine: Any, wrapped: Any) -> Any:
    """Have a coroutine of ours go by the name of the one that it stands for, as a task shows it; returns it."""
    coroutine.__name__ = wrapped.__name__
    coroutine.__qualname__ = wrapped.__qualname__
    return coroutine


class Patches:
    """The replacements that one instrumentor has made, in order; `undo` leaves every attribute as it was found."""

    def __init__(self, instrumentation: str = "") -> None:
        """Begin with none.

        Args:
            instrumentation: one of `hopwatch.process.LIBRARIES`, which is in place once `complete` says so.
        """
        self._instrumentation = instrumentation
        self._made: list[tuple[Any, str, Any, Any]] = []
        self._own: list[tuple[weakref.ref[Any], str]] = []
        """Weak references to objects of which an attribute of their own is wrapped, and its name."""
        self._undone = self._lacking = False

    def complete(self) -> None:
        """Say that the instrumentation has made its replacements, or waits for imports to make them."""
        if not self._lacking:
            in_place.add(self._instrumentation)

    def lack(self) -> None:
        """Say that a replacement could not be made without which work is not counted: what is done from now on is never called over."""
        self._lacking = True
        in_place.discard(self._instrumentation)

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any], *, bound: bool = True) -> bool:
        """Put `make(original)` in the place of `owner.name`.

        Args:
            owner: a class or a module.
            name: the attribute's.
            make: makes the replacement of what is there.
            bound: whether what is there is called as a function. It may be a wrapper of wrapt's, which then has to be told
                whose method it is: without, OpenTelemetry's instrumentation of threads (0.66) fails.

        Returns:
            False where the owner has no such attribute: this release of the library is another one than we know.
        """
        original = getattr(owner, name, _ABSENT)
        if original is _ABSENT:
            return False
        own = vars(owner).get(name, _ABSENT)
        as_it_is = own is not _ABSENT and not (bound and isinstance(own, wrapt.FunctionWrapper))
        replacement = make(own if as_it_is else original)
        _be_as(original, replacement)
        setattr(owner, name, replacement)
        self._made.append((owner, name, own, replacement))
        return True

    def wrap(
        self, owner: Any, name: str, wrapper: Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]
    ) -> bool:
        """Wrap `owner.name` so that it keeps its signature and name; `wrapper(wrapped, instance, args, kwargs)`.

        What another instrumentation has wrapped again, or put back in a form of its own, cannot be taken out by
        `undo`: there the wrapper only hands on what it is called with.
        """

        def while_instrumented(
            wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            return wrapped(*args, **kwargs) if self._undone else wrapper(wrapped, instance, args, kwargs)

        def make(original: Any) -> Any:
            if type(original) is not FunctionType or not isinstance(owner, type) or _shows_its_kind(original):
                return Wrapper(original, while_instrumented)

            # A function of its own is the same at each look-up, is pickled by its name, and can be referred to weakly.
            @functools.wraps(original)
            def replacement(self: Any, /, *args: Any, **kwargs: Any) -> Any:
                return while_instrumented(MethodType(original, self), self, args, kwargs)

            return replacement

        return self.replace(owner, name, make, bound=False)

    def wrap_own(
        self, instance: Any, name: str, wrapper: Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        """Wrap what one object has in place of a method of its class, as `wrap` does; the object is not kept alive."""
        original = vars(instance)[name]
        if isinstance(original, Wrapper):
            return
        kept = weakref.ref(instance)

        def while_instrumented(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            owner = kept()
            return (
                wrapped(*args, **kwargs)
                if self._undone or owner is None
                else wrapper(wrapped, owner, args, kwargs)
            )

        setattr(instance, name, Wrapper(original, while_instrumented))
        self._own = [each for each in self._own if each[0]() is not None]
        self._own.append((kept, name))

    def add(self, owner: Any, name: str, value: Any) -> None:
        """Give a class an attribute that it does not have."""
        own = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._made.append((owner, name, own, value))

    def when_imported(self, name: str, hook: Callable[[Any], object]) -> None:
        """Run `hook(module)` as soon as `name` is imported, or now if it is already; never import it."""

        def guarded(module: Any) -> None:
            if self._undone:
                return
            try:
                hook(module)
            except Exception:  # noqa: BLE001 - an import of the application must not fail because of us
                failed(f"import of {name}")
                self.lack()

        module = sys.modules.get(name)
        if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
            guarded(module)
        else:
            wrapt.register_post_import_hook(guarded, name)

    def undo(self) -> None:
        """Put everything back, the newest replacement first. What somebody else replaced after us stays theirs."""
        self._undone = True
        in_place.discard(self._instrumentation)
        for kept, name in self._own:
            instance = kept()
            replaced = vars(instance).get(name) if instance is not None else None
            if isinstance(replaced, Wrapper):
                setattr(instance, name, replaced.__wrapped__)
        self._own.clear()
        while self._made:
            owner, name, own, replacement = self._made.pop()
            if vars(owner).get(name, _ABSENT) is not replacement:
                continue
            if own is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
