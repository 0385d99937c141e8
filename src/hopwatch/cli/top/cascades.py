"""Which cascades are there? The list, and what filters and orders it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from hopwatch.cli.text import count, moment, plain
from hopwatch.cli.top.cascade import CascadeView
from hopwatch.cli.top.drawing import VERDICTS, badge, cascade_row, cascade_words, verdict_of
from hopwatch.cli.top.study import listed
from hopwatch.cli.top.view import View, while_shown
from hopwatch.cli.top.widgets import Head, Lines

if TYPE_CHECKING:
    from textual.app import ComposeResult


class CascadesView(View):
    """Which cascades are there?"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "words", "Words", key_display="/"),
        Binding("a", "agent", "Agent"),
        Binding("o", "order", "Order"),
        Binding("y", "copy", "Copy id", show=False),
        Binding("escape", "clear", "Show all", show=False),
        *(Binding(str(n), f"verdict({n})", show=False) for n in range(9)),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.verdicts: set[str] = set()
        self.agent = ""
        self.oldest_first = False

    def compose(self) -> ComposeResult:
        """The list with its filters."""
        yield Head("Cascades")
        yield Static(id="verdicts", markup=False)
        yield Input(
            id="words", placeholder="words of the id, the agents or the reason; Enter goes back to the list"
        )
        yield Static(id="summary", markup=False)
        yield Lines[dict[str, Any]](lambda row: str(row["cascade"]), self._row, id="lines")
        yield Static(id="chosen", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """The list is where one begins."""
        self.query_one("#words").display = False
        self.rows.focus()

    def on_screen_resume(self) -> None:
        """No single cascade is looked at."""
        self.top.stream.watch(None)
        super().on_screen_resume()

    @property
    def rows(self) -> Lines[dict[str, Any]]:
        """The rows."""
        return self.query_one("#lines", Lines)

    def _row(self, row: dict[str, Any], width: int) -> Text:
        return cascade_row(row, width, self.known.now())

    @while_shown
    def changed(self) -> None:
        """Filter, order and show what is known."""
        words = self.query_one("#words", Input).value.lower().split()
        rows = [row for row in self.known.rows() if self._wanted(row, words)]
        counts: dict[str, int] = {}
        for row in rows:
            counts[verdict_of(row)] = counts.get(verdict_of(row), 0) + 1
        shown = [row for row in rows if not self.verdicts or verdict_of(row) in self.verdicts]
        shown.sort(key=_newest_first)
        if self.oldest_first:
            shown.sort(key=lambda row: _begun(row) if row.get("open") else float("inf"))
        self.query_one("#verdicts", Static).update(self._chips(counts))
        self.query_one("#summary", Static).update(self._summary(shown))
        self.rows.fill(shown, moved=True)

    @while_shown
    def tick(self) -> None:
        """Ages go on."""
        self.rows.refresh()
        self.on_lines_moved()

    @while_shown
    def on_lines_moved(self) -> None:
        """Say all of the row that has the cursor."""
        row = self.rows.chosen
        self.query_one("#chosen", Static).update(
            Text() if row is None else cascade_words(row, self.known.now())
        )

    def on_lines_chosen(self) -> None:
        """Open it."""
        row = self.rows.chosen
        if row is not None:
            self.app.push_screen(CascadeView(str(row["cascade"])))

    def on_input_changed(self) -> None:
        """Other words."""
        self.changed()

    def on_input_submitted(self) -> None:
        """Back to the list."""
        self._leave_words()

    def action_words(self) -> None:
        """Type words."""
        self.query_one("#words").display = True
        self.query_one("#words").focus()

    def action_clear(self) -> None:
        """Leave the words; from the list: show everything again."""
        if self.focused is not self.rows:
            self._leave_words()
            return
        self.verdicts.clear()
        self.agent = ""
        self.query_one("#words", Input).value = ""
        self._leave_words()
        self.changed()

    def action_verdict(self, number: int) -> None:
        """Only that verdict, or not any more; all of them."""
        if number == 0:
            self.verdicts.clear()
        else:
            self.verdicts ^= {VERDICTS[number - 1]}
            if self.verdicts:  # of older ones nobody tells
                self.run_worker(self._search(sorted(self.verdicts)), exclusive=True)
        self.changed()

    def action_agent(self) -> None:
        """Choose an agent."""
        names = sorted({str(name) for row in self.known.rows() for name in listed(row.get("agents"))})

        def choose(name: str | None) -> None:
            if name is not None:
                self.only_of(name)

        self.app.push_screen(AgentChoice(names), choose)

    def only_of(self, name: str) -> None:
        """Show only the cascades of that agent; of all where it is empty."""
        self.agent = name
        self.changed()

    def action_order(self) -> None:
        """The other order."""
        self.oldest_first = not self.oldest_first
        self.changed()
        self.rows.action_end(0)

    def action_copy(self) -> None:
        """Copy the id."""
        row = self.rows.chosen
        if row is not None:
            self.top.copy(str(row["cascade"]))

    def _leave_words(self) -> None:
        field = self.query_one("#words", Input)
        field.display = bool(field.value)
        self.rows.focus()

    async def _search(self, verdicts: list[str]) -> None:
        rows = await self.top.stream.search(verdicts)
        if rows:
            self.known.find(rows)
            self.changed()

    def _wanted(self, row: dict[str, Any], words: list[str]) -> bool:
        agents = listed(row.get("agents"))
        if self.agent and self.agent not in agents:
            return False
        if not words:
            return True
        said = f"{row.get('cascade')} {' '.join(map(str, agents))} {row.get('reason')} {badge(verdict_of(row))[0]}".lower()
        return all(word in said for word in words)

    def _chips(self, counts: dict[str, int]) -> Text:
        out = Text()
        for number, verdict in enumerate(VERDICTS, 1):
            words, style = badge(verdict)
            chosen = verdict in self.verdicts
            out.append(f"{number}", "dim")
            out.append(
                f"{words} {counts.get(verdict, 0):,}",
                f"{style} reverse" if chosen else style if counts.get(verdict) else "dim",
            )
            out.append("  ")
        return out

    def _summary(self, shown: list[dict[str, Any]]) -> Text:
        everything = sum(1 for _ in self.known.rows())
        if not everything:
            nothing = "No cascade has come yet. Agents report here once they are started with hopwatch."
            return Text(nothing if self.known.link == "live" else "Nothing is known yet.")
        opened = sum(bool(row.get("open")) for row in shown)
        out = Text(count(len(shown), "cascade"))
        out.append(f" of {everything:,}" if len(shown) < everything else "")
        out.append(
            f", {opened:,} with open hops; {'oldest open first' if self.oldest_first else 'newest first'}"
        )
        if self.agent:
            out.append("; of the agent ")
            out.append(plain(self.agent, 60), "bold cyan")
        if len(shown) < everything:
            out.append("; Esc shows all", "dim")
        return out


class AgentChoice(ModalScreen[str]):
    """Of which agent?"""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Back")]

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = ["", *names]

    def compose(self) -> ComposeResult:
        """The names, as text."""
        yield OptionList(*(Option(Text(plain(name, 60) if name else "all agents")) for name in self._names))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """That one."""
        self.dismiss(self._names[event.option_index])


def _begun(row: dict[str, Any]) -> float:
    begun = moment(row.get("started"))
    return float("inf") if begun is None else begun.timestamp()


def _newest_first(row: dict[str, Any]) -> float:
    begun = moment(row.get("started"))
    return 0.0 if begun is None else -begun.timestamp()
