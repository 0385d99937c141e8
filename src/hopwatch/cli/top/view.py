"""What do all screens of `hopwatch top` have in common?"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen

from hopwatch.cli.top.widgets import Head

if TYPE_CHECKING:
    from collections.abc import Callable

    from hopwatch.cli.top.app import Top
    from hopwatch.cli.top.known import Known


T = TypeVar("T")


def while_shown(draw: Callable[[T], None]) -> Callable[[T], None]:
    """A method of a screen that is left out while the screen has not got its parts yet, or is losing them."""

    @wraps(draw)
    def guarded(screen: T) -> None:
        with suppress(NoMatches):
            draw(screen)

    return guarded


class View(Screen[None]):
    """A screen that is told of changes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g", "app.agents", "Agents"),
        Binding("question_mark", "app.help", "Help", key_display="?"),
        Binding("d", "app.toggle_dark", "Dark/light", show=False),
        Binding("q", "app.end", "Quit"),
    ]

    @property
    def top(self) -> Top:
        """The program."""
        return cast("Top", self.app)

    @property
    def known(self) -> Known:
        """What the collector told."""
        return self.top.known

    def changed(self) -> None:
        """Something is another than it was: draw it."""

    def tick(self) -> None:
        """Time has gone on."""

    def on_screen_resume(self) -> None:
        """It is seen again."""
        self.tell_link()
        self.changed()

    def tell_link(self) -> None:
        """Say how the connection is."""
        for head in self.query(Head):
            head.tell(self.known, self.top.stream.url)
