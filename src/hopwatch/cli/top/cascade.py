"""How does one cascade stand? Its verdict, its picture as lanes or as a tree, and the details of one hop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Input, Static

from hopwatch.cli.text import count, moment, plain
from hopwatch.cli.top.details import cycle, line_details, title_of
from hopwatch.cli.top.drawing import about, badge, bar_row, labels, tree_row
from hopwatch.cli.top.lines import Line, lane_lines, matching, tree_lines
from hopwatch.cli.top.scale import Moments, Scale
from hopwatch.cli.top.study import dicts, listed, studied
from hopwatch.cli.top.view import View, while_shown
from hopwatch.cli.top.widgets import Head, Lines

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.timer import Timer

    from hopwatch.cli.top.study import Study

SHARE: Final = 0.2
"""Part of the time that working out a large cascade may take."""


class CascadeView(View):
    """How does one cascade stand?"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("t", "tree", "Lanes/tree"),
        Binding("f", "frontier", "Frontier"),
        Binding("p", "cause", "Cause"),
        Binding("u", "unfinished", "Unfinished"),
        Binding("slash", "words", "Words", key_display="/", show=False),
        Binding("z", "shorten", "Shorten", show=False),
        Binding("y", "copy", "Copy id", show=False),
    ]

    def __init__(self, identity: str) -> None:
        super().__init__()
        self.identity = identity
        self.study: Study | None = None
        self.as_tree = False
        self.shorten = True
        self.unfinished = False
        self.expanded: set[str] = set()
        self.drawn_in = 0.0
        """Seconds that the last change took to be worked out."""
        self._moments = Moments(())
        self._scale = Scale(self._moments)
        self._details = Text()
        self._seen = -1
        self._next = 0.0
        self._later: Timer | None = None
        self._first = True

    def compose(self) -> ComposeResult:
        """What is concluded, the picture, and the details of a hop beside it."""
        yield Head(f"Cascade {self.identity[:8]}")
        yield Static(id="verdict", markup=False)
        yield Input(id="words", placeholder="words of the kind, the agent or the name; Enter goes back")
        with Horizontal(id="body"):
            with Vertical(id="picture"):
                yield Static(id="axis", markup=False)
                yield Lines[Line](lambda line: line.key, self._row, id="lines")
            with VerticalScroll(id="panel"):
                yield Static(id="panel-title", markup=False)
                yield Static(id="details", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """The picture comes first."""
        self.query_one("#panel").display = False
        self.query_one("#words").display = False
        self.lines.focus()

    def on_screen_resume(self) -> None:
        """It is told of from here on."""
        self.top.stream.watch(self.identity)
        super().on_screen_resume()

    @property
    def lines(self) -> Lines[Line]:
        """The picture's lines."""
        return self.query_one("#lines", Lines)

    @property
    def details_shown(self) -> bool:
        """Whether the details of a hop are beside the picture."""
        return bool(self.query_one("#panel").display)

    @while_shown
    def changed(self) -> None:
        """Work it out and draw it, but not all the time."""
        cascade = self.known.cascade
        if cascade is None or cascade.id != self.identity:
            if self.study is None:
                self.query_one("#verdict", Static).update(Text("Nothing is known of it yet…", "dim"))
            return
        if self._seen == self.known.changes:
            return
        now = time.monotonic()
        if now < self._next:
            if self._later is None:
                self._later = self.set_timer(self._next - now, self._after_a_while)
            return
        self._seen = self.known.changes
        if not cascade.known:
            self.query_one("#verdict", Static).update(
                Text("? No record of this cascade has come. If one does, it is shown here.", "magenta")
            )
            return
        self.study = studied(cascade)
        self._moments = Moments(
            at for fact in self.study.facts.values() for at in (fact.begun, fact.over) if at is not None
        )
        self.lay_out()
        self.drawn_in = time.monotonic() - now
        self._next = time.monotonic() + self.drawn_in / SHARE
        if self._first and self.lines.content:
            self._first = False
            self.action_frontier()

    @while_shown
    def lay_out(self) -> None:
        """Choose the lines of the picture."""
        if self.study is None:
            return
        wanted = matching(self.query_one("#words", Input).value, unfinished=self.unfinished)
        make = tree_lines if self.as_tree else lane_lines
        self.lines.fill(make(self.study, expanded=self.expanded, wanted=wanted))
        self.tick()

    @while_shown
    def tick(self) -> None:
        """Bars grow."""
        if self.study is None:
            return
        self.query_one("#verdict", Static).update(self._words(self.study))
        axis = self.query_one("#axis", Static)
        axis.display = not self.as_tree
        if not self.as_tree:
            self._scale = Scale(
                self._moments, self.known.now() if self.study.opened else None, shorten=self.shorten
            )
            width = self.lines.size.width
            room = labels(width)
            axis.update(Text(" " * room + self._scale.axis(max(1, width - room - 9)), "dim", no_wrap=True))
        self.lines.refresh()
        self._show_details()

    def _row(self, line: Line, width: int) -> Text:
        now = self.known.now()
        return tree_row(line, width, now) if self.as_tree else bar_row(line, width, now, self._scale)

    def _words(self, study: Study) -> Text:
        head, now = study.cascade.head, self.known.now()
        words, style = badge(study.verdict)
        out = Text()
        out.append(f" {words.upper()} ", f"{style} reverse")
        out.append(f" {self.identity}", "bold")
        begun, over = moment(head.get("started")), moment(head.get("ended"))
        if begun is not None and over is not None:
            out.append(f"  took {about((over - begun).total_seconds())}")
        elif begun is not None and study.opened:
            out.append(f"  open for {about(now - begun.timestamp())}")
        out.append(f"  {count(len(study.facts), 'hop')}")
        if study.opened:
            out.append(f", {study.opened:,} open, {len(study.frontier):,} at the frontier")
        out.append(f"\n{plain(head.get('reason'), 1_500)}", style)
        opaque = [plain(each, 60) for each in listed(head.get("opaque"))]
        if opaque:
            more = f" and {len(opaque) - 5} more" if len(opaque) > 5 else ""
            out.append(
                f"\nNot instrumented, so nothing is known of what they do: {', '.join(opaque[:5])}{more}",
                "yellow",
            )
        for each in _deadlocks(study)[:3]:
            out.append(f"\nDeadlock: {plain(each, 600)}", "bold red")
        return out

    def _show_details(self) -> None:
        line = self.lines.chosen
        if not self.details_shown or self.study is None or line is None:
            return
        self.query_one("#panel-title", Static).update(Text(title_of(line), "bold"))
        details = line_details(self.study, line, self.known.now(), self.top.trace_url)
        shown = self.query_one("#details", Static)
        if self._details != details:
            self._details = details
            shown.update(details)

    def _after_a_while(self) -> None:
        self._later = None
        self.changed()

    def on_resize(self) -> None:
        """The lines have another width."""
        self.call_after_refresh(self.tick)

    @while_shown
    def on_lines_moved(self) -> None:
        """The details follow the cursor."""
        if self.details_shown:
            self.query_one("#panel", VerticalScroll).scroll_home(animate=False)
        self._show_details()

    def on_lines_chosen(self) -> None:
        """Show the details; of several that are drawn as one, each."""
        line = self.lines.chosen
        if line is None:
            return
        if line.kind == "group":
            self.expanded ^= {line.key}
            self.lay_out()
            return
        self.query_one("#panel").display = True
        self._show_details()
        self.query_one("#panel", VerticalScroll).scroll_home(animate=False)
        self.set_class(True, "with-panel")

    def on_input_changed(self) -> None:
        """Other words."""
        self.lay_out()

    def on_input_submitted(self) -> None:
        """Back to the picture."""
        field = self.query_one("#words", Input)
        field.display = bool(field.value)
        self.lines.focus()

    def action_words(self) -> None:
        """Type words."""
        self.query_one("#words").display = True
        self.query_one("#words").focus()

    def action_back(self) -> None:
        """Out of the details, out of the words, out of the cascade."""
        field = self.query_one("#words", Input)
        if self.details_shown:
            self.query_one("#panel").display = False
            self.set_class(False, "with-panel")
            self.lines.focus()
        elif field.display:
            field.value = ""
            field.display = False
            self.lines.focus()
        else:
            self.app.pop_screen()

    def action_tree(self) -> None:
        """The other picture."""
        self.as_tree = not self.as_tree
        self.lay_out()

    def action_shorten(self) -> None:
        """Shorten quiet stretches, or not."""
        self.shorten = not self.shorten
        self.tick()

    def action_unfinished(self) -> None:
        """Only what did not end well, or has not ended; or all of it."""
        self.unfinished = not self.unfinished
        self.lay_out()

    def action_frontier(self) -> None:
        """To where the cascade stands."""
        looks = ("lit", "abandoned", "failed", "stale", "open")
        lines = [line for line in self.lines.content if line.key and line.look in looks]
        if lines:
            now = self.lines.chosen
            lit = [line for line in lines if line.look == most_urgent(lines, looks)]
            place = next((n for n, line in enumerate(lit) if now is not None and line.key == now.key), -1)
            self.lines.go_to(lit[(place + 1) % len(lit)].key)

    def action_cause(self) -> None:
        """To the hop that caused this one, out of a group if need be."""
        line = self.lines.chosen
        above = line.facts[0].above if line is not None and line.facts else None
        if above is None or self.lines.go_to(above.id):
            return
        for each in self.lines.content:
            if each.kind == "group" and any(fact is above for fact in each.facts):
                self.expanded.add(each.key)
                self.lay_out()
                self.lines.go_to(above.id)
                return

    def action_copy(self) -> None:
        """Copy the hop's id."""
        line = self.lines.chosen
        self.top.copy(line.facts[0].id if line is not None and line.facts else self.identity)


def most_urgent(lines: list[Line], looks: tuple[str, ...]) -> str:
    """The most urgent look among some lines."""
    return min((line.look for line in lines), key=looks.index)


def _deadlocks(study: Study) -> list[str]:
    """The circles that hold it up: those over several agents in the collector's words, those of one process as the cycle."""
    out = [plain(each.get("words"), 600) for each in dicts(study.cascade.head.get("deadlocks"))]
    seen: set[tuple[str, str]] = set()
    for fact in study.facts.values():
        waits = fact.hop.get("waits_on")
        deadlock = waits.get("deadlock") if isinstance(waits, dict) else None
        if not isinstance(deadlock, dict):
            continue
        tasks = sorted(plain(edge.get("task")) for edge in dicts(deadlock.get("edges")))
        key = (str(fact.hop.get("instance")), "\n".join(tasks))
        if key not in seen:
            seen.add(key)
            out.append(f"in {plain(fact.hop.get('agent'), 60)}: {cycle(deadlock)}")
    return out
