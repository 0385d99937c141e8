"""Which parts do the screens have? A list that draws only the lines that are to be seen, and what says how the connection is."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from hopwatch.cli.text import clock, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.style import Style
    from textual import events

    from hopwatch.cli.top.known import Known

T = TypeVar("T")


class Lines(ScrollView, Generic[T], can_focus=True):
    """Any number of lines, each drawn only while it is to be seen. The cursor stays on its line when the others change.

    Textual's own lists keep a widget or a rendered row for every line, and lose the cursor when the order changes.

    Args:
        key_of: what tells one line from another; empty for a line that cannot be chosen.
        draw: one line, for a width.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"lines--cursor"}
    DEFAULT_CSS = """
    Lines { height: 1fr; scrollbar-gutter: stable; }
    Lines > .lines--cursor { background: $foreground 12%; }
    Lines:focus > .lines--cursor { background: $primary 18%; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "end(0)", "First", show=False),
        Binding("end", "end(-1)", "Last", show=False),
        Binding("enter", "choose", "Open", show=True),
    ]

    class Moved(Message):
        """The cursor is on another line."""

    class Chosen(Message):
        """Enter, or a click on the line that has the cursor."""

    def __init__(
        self,
        key_of: Callable[[T], str],
        draw: Callable[[T, int], Text],
        *,
        id: str | None = None,  # noqa: A002 - Textual's name
    ) -> None:
        super().__init__(id=id)
        self._key_of = key_of
        self._draw_line = draw
        self._lines: Sequence[T] = ()
        self._places: list[int] = []
        """Which lines can be chosen."""
        self._key = ""
        self._cursor: int | None = None
        self.drawn = 0
        """Lines that were drawn so far: what is measured."""

    def fill(self, lines: Sequence[T], *, moved: bool = False) -> None:
        """Show these lines. The cursor stays on the line that has it, or else where it is.

        Args:
            lines: all of them.
            moved: tell of it even if the cursor is where it was, for what is there may be another thing.
        """
        before = self._key
        self._lines = lines
        keys = [self._key_of(line) for line in lines]
        self._places = [place for place, key in enumerate(keys) if key]
        place = next((each for each in self._places if keys[each] == self._key), None) if self._key else None
        if place is None and self._places:
            near = min(bisect_left(self._places, self._cursor or 0), len(self._places) - 1)
            place = self._places[near]
        inside = self._cursor is not None and self._is_seen(self._cursor)
        shifted = place is not None and place != self._cursor
        self._cursor = place
        self._key = keys[place] if place is not None else ""
        self.virtual_size = Size(0, len(lines))
        self.refresh()
        if shifted and inside and before:
            self._follow()
        if moved or self._key != before:
            self.post_message(self.Moved())

    @property
    def chosen(self) -> T | None:
        """The line that has the cursor."""
        return None if self._cursor is None else self._lines[self._cursor]

    @property
    def content(self) -> Sequence[T]:
        """All that it shows."""
        return self._lines

    def go_to(self, key: str) -> bool:
        """Put the cursor on that line; False where there is none."""
        place = next((each for each in self._places if self._key_of(self._lines[each]) == key), None)
        if place is not None:
            self._put(place)
        return place is not None

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        place, width = y + self.scroll_offset.y, self.size.width
        style: Style = self.rich_style
        if place >= len(self._lines):
            return Strip.blank(width, style)
        self.drawn += 1
        text = self._draw_line(self._lines[place], width)
        text.truncate(width, overflow="ellipsis")
        strip = Strip(text.render(self.app.console)).adjust_cell_length(width)
        if place == self._cursor:
            style = style + self.get_component_rich_style("lines--cursor")
        return strip.apply_style(style)

    def action_move(self, by: int) -> None:
        """So many lines up or down."""
        self._step(by)

    def action_page(self, by: int) -> None:
        """A screen up or down."""
        if self._cursor is None:
            return
        wanted = self._cursor + by * max(1, self.size.height - 1)
        near = bisect_left(self._places, max(0, wanted))
        self._put(self._places[min(near, len(self._places) - 1)])

    def action_end(self, place: int) -> None:
        """The first line, or the last one."""
        if self._places:
            self._put(self._places[place])
            if place == 0:
                self.scroll_to(y=0, animate=False)

    def action_choose(self) -> None:
        """Tell that the line is chosen."""
        if self._cursor is not None:
            self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        """A click puts the cursor there; on the line that has it, it is as Enter."""
        place = event.y + self.scroll_offset.y
        if place == self._cursor:
            self.action_choose()
        elif place in self._places:
            self._put(place)

    def _step(self, by: int) -> None:
        if self._cursor is None:
            return
        at = bisect_left(self._places, self._cursor) + by
        if 0 <= at < len(self._places):
            self._put(self._places[at])
        elif by < 0:
            self.scroll_to(y=0, animate=False)

    def _put(self, place: int) -> None:
        self._cursor = place
        self._key = self._key_of(self._lines[place])
        self._follow()
        self.refresh()
        self.post_message(self.Moved())

    def _follow(self) -> None:
        if self._cursor is not None:
            # With the note below it, and the heading above it, where there is room.
            region = (
                Region(0, max(0, self._cursor - 1), 1, 3)
                if self.size.height > 4
                else Region(0, self._cursor, 1, 1)
            )
            self.scroll_to_region(region, animate=False, force=True)

    def _is_seen(self, place: int) -> bool:
        return 0 <= place - self.scroll_offset.y < max(1, self.size.height)


class Head(Static):
    """The first line of every screen: where one is, and how the connection is."""

    DEFAULT_CSS = """
    Head { height: auto; max-height: 3; background: $panel; }
    Head.lost { background: $error; color: $text; text-style: bold; }
    """

    def __init__(self, title: str) -> None:
        super().__init__(markup=False)
        self.title = title

    def tell(self, known: Known, url: str) -> None:
        """Say how it is now."""
        self.set_class(known.link == "lost", "lost")
        out = Text()
        out.append(f" {self.title} ", "bold")
        out.append(f" {plain(url)}  ", "")
        if known.link == "live":
            out.append("● live", "bold green")
        elif known.link == "connecting":
            out.append("◌ connecting…", "")
        else:
            out.append(f"✖ Connection lost at {clock(known.lost_at)}. What you see is of then. Trying again…")
            out.append(f" ({plain(known.why)})")
        self.update(out)
