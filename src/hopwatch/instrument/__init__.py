"""Which attributes of other people's classes are replaced, and how are they put back?

The package has the name of the function `hopwatch.instrument`, and takes its place in `hopwatch` once it is imported. So it
can be called as the function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from hopwatch import api
from hopwatch.process import failed

if TYPE_CHECKING:
    from collections.abc import Callable

_ABSENT = object()


class _Callable(ModuleType):
    """This package as the function that has its name."""

    def __call__(self, url: str | None = None, *, service_name: str | None = None) -> None:
        """As `hopwatch.instrument`."""
        api.instrument(url, service_name=service_name)


sys.modules[__name__].__class__ = _Callable


class Patches:
    """The replacements that one instrumentor has made, in order; `undo` leaves every attribute as it was found."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, str, Any, Any]] = []
        self._undone = False

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        """Put `make(original)` in the place of `owner.name`.

        Returns:
            False where the owner has no such attribute: this release of the library is another one than we know.
        """
        original = getattr(owner, name, _ABSENT)
        if original is _ABSENT:
            return False
        own = vars(owner).get(name, _ABSENT)
        replacement = make(own if own is not _ABSENT else original)
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

        return self.replace(owner, name, lambda original: wrapt.FunctionWrapper(original, while_instrumented))

    def add(self, owner: Any, name: str, value: Any) -> None:
        """Give a class an attribute that it does not have."""
        own = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._made.append((owner, name, own, value))

    def when_imported(self, name: str, hook: Callable[[Any], None]) -> None:
        """Run `hook(module)` as soon as `name` is imported, or now if it is already; never import it."""

        def guarded(module: Any) -> None:
            if self._undone:
                return
            try:
                hook(module)
            except Exception:  # noqa: BLE001 - an import of the application must not fail because of us
                failed(f"import of {name}")

        module = sys.modules.get(name)
        if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
            guarded(module)
        else:
            wrapt.register_post_import_hook(guarded, name)

    def undo(self) -> None:
        """Put everything back, the newest replacement first. What somebody else replaced after us stays theirs."""
        self._undone = True
        while self._made:
            owner, name, own, replacement = self._made.pop()
            if vars(owner).get(name, _ABSENT) is not replacement:
                continue
            if own is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
