"""Which processes report, and how are they?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Static

from hopwatch.cli.text import count, plain
from hopwatch.cli.top.drawing import STATES, agent_row
from hopwatch.cli.top.view import View, while_shown
from hopwatch.cli.top.widgets import Head, Lines

if TYPE_CHECKING:
    from textual.app import ComposeResult


class AgentsView(View):
    """Which processes report, and how are they?"""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "app.pop_screen", "Back")]

    def compose(self) -> ComposeResult:
        """A line for each process."""
        yield Head("Agents")
        yield Static(id="summary", markup=False)
        yield Lines[dict[str, Any]](lambda agent: str(agent["instance"]), self._row, id="lines")
        yield Static(id="chosen", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """The list is all there is."""
        self.rows.focus()

    @property
    def rows(self) -> Lines[dict[str, Any]]:
        """The rows."""
        return self.query_one("#lines", Lines)

    def _row(self, agent: dict[str, Any], width: int) -> Text:
        return agent_row(agent, width, self.known.now())

    @while_shown
    def changed(self) -> None:
        """Who is lost or silent first, then who has most open."""
        rank = {"silent": 0, "alive": 1, "idle": 2, "ended": 3}
        agents = sorted(
            self.known.agents.values(),
            key=lambda each: (
                rank.get(str(each.get("state")), 4),
                -(each.get("open") or 0),
                plain(each.get("name")),
            ),
        )
        counts: dict[str, int] = {}
        for each in agents:
            counts[str(each.get("state"))] = counts.get(str(each.get("state")), 0) + 1
        said = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts.get(state))
        self.query_one("#summary", Static).update(
            Text(
                f"{count(len(agents), 'process', 'processes')}: {said}"
                if agents
                else "No process has been heard of."
            )
        )
        self.rows.fill(agents, moved=True)

    @while_shown
    def tick(self) -> None:
        """Ages go on."""
        self.rows.refresh()

    @while_shown
    def on_lines_moved(self) -> None:
        """Say what the state means."""
        agent = self.rows.chosen
        if agent is not None:
            state = plain(agent.get("state"), 20)
            said = (
                f"{plain(agent.get('name'), 300)}: {state}, {STATES[state][2]}" if state in STATES else state
            )
            self.query_one("#chosen", Static).update(Text(f"{said}. Enter shows its cascades."))

    def on_lines_chosen(self) -> None:
        """Its cascades."""
        agent = self.rows.chosen
        if agent is not None:
            self.top.cascades_of(str(agent.get("name")))
