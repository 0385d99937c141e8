"""What does `hopwatch top` show? The program that holds its screens, and what every key does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import App, ScreenStackError
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from hopwatch.cli.text import plain
from hopwatch.cli.top.agents import AgentsView
from hopwatch.cli.top.cascades import CascadesView
from hopwatch.cli.top.known import Known
from hopwatch.cli.top.stream import Stream
from hopwatch.cli.top.view import View

if TYPE_CHECKING:
    from textual.app import ComposeResult

PASS_ON_EVERY: Final = 0.1
"""Seconds between two looks whether something is to be drawn anew."""
TICK_EVERY: Final = 0.5
"""Seconds after which durations go on."""
INTERRUPTED: Final = 130
"""What a shell takes for "ended by Ctrl-C"."""
HELP: Final = """\
Everywhere
  ↑ ↓  k j          a line up or down            PgUp PgDn Home End   further
  Enter             open what has the cursor      Esc                  back
  g                 the agents                    ?                    this
  d                 dark or light                 q                    quit

Cascades
  1 … 8             show only that verdict; again: not any more; 0: all of them
  /                 words: of the id, the agents, the reason
  a                 only cascades of one agent
  o                 newest first, or oldest open first
  y                 copy the id

One cascade
  t                 lanes with bars, or a tree
  z                 shorten stretches in which nothing happens, or not
  u                 only what did not end well, or has not ended
  /                 words: of the kind, the agent, the name
  Enter             the details of a hop; of several that are drawn as one: each of them
  p                 to the hop that caused this one
  f                 to the frontier: where the cascade stands
  Tab               into the details, to scroll them
  y                 copy the hop's id

● at the frontier, open   ○ open   ◌ open when last heard of   ✓ finished   ✗ failed
✖ abandoned: it never finished   ⊘ cancelled   ? not seen
"""


class HelpView(ModalScreen[None]):
    """Which keys are there?"""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter", "dismiss", "Back")]

    def compose(self) -> ComposeResult:
        """All of them."""
        with VerticalScroll():
            yield Static(HELP, markup=False)


class Top(App[None]):
    """`hopwatch top`.

    Args:
        url: the collector.
        token: what it wants of everybody, if it does.
        trace_url: where traces are to be seen, with {trace} and {span} in it.
    """

    TITLE = "hopwatch top"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual declares it as its own
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "interrupt", show=False, priority=True)]
    CSS = """
    Screen { layers: base; }
    #verdicts, #summary { height: auto; padding: 0 1; }
    #verdicts { max-height: 3; }
    #chosen { height: auto; max-height: 5; padding: 0 1; border-top: solid $panel; }
    #words { height: 3; }
    #verdict { height: auto; max-height: 9; padding: 0 1; }
    #body { height: 1fr; }
    #picture { width: 1fr; padding: 0 1; }
    #axis { height: 1; }
    #panel { width: 45%; padding: 0 1; border-left: solid $panel; }
    #panel:focus { border-left: solid $primary; }
    #panel-title { height: auto; max-height: 3; }
    #details { height: auto; }
    .-narrow.with-panel #picture { display: none; }
    .-narrow.with-panel #panel { width: 1fr; border-left: none; }
    AgentChoice, HelpView { align: center middle; }
    AgentChoice OptionList { width: 60; max-width: 90%; height: auto; max-height: 80%; }
    HelpView VerticalScroll { width: 92; max-width: 96%; height: auto; max-height: 90%; background: $surface; padding: 1 2; }
    """

    def __init__(self, url: str, token: str | None = None, trace_url: str | None = None) -> None:
        super().__init__()
        self.known = Known()
        self.stream = Stream(url, token, self.known, self._told)
        self.trace_url = trace_url
        self._dirty = False
        self._cascades = CascadesView()

    def get_default_screen(self) -> Screen[None]:
        """Where one begins."""
        return self._cascades

    def on_mount(self) -> None:
        """Listen from here on, and end in order when asked to."""
        self.run_worker(self.stream.run(), name="stream")
        self.set_interval(PASS_ON_EVERY, self._pass_on)
        self.set_interval(TICK_EVERY, self._tick)
        with contextlib.suppress(
            NotImplementedError, ValueError, RuntimeError
        ):  # not in the main thread: a test
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminated)

    def copy(self, text: str) -> None:
        """Hand a text to the terminal's clipboard, where it has one that may be written to."""
        self.copy_to_clipboard(plain(text))
        self.notify(f"copied: {plain(text, 40)}", markup=False, timeout=2)

    def cascades_of(self, agent: str) -> None:
        """The list, of that agent's cascades alone."""
        while self.screen is not self._cascades:
            self.pop_screen()
        self._cascades.only_of(agent)

    def action_agents(self) -> None:
        """The agents, over whatever is there."""
        if not isinstance(self.screen, AgentsView):
            self.push_screen(AgentsView())

    def action_help(self) -> None:
        """Which keys there are."""
        self.push_screen(HelpView())

    def action_toggle_dark(self) -> None:
        """Light letters on dark, or the other way round."""
        self.theme = "textual-light" if self.theme == "textual-dark" else "textual-dark"

    def action_end(self) -> None:
        """Quit."""
        self.exit()

    def action_interrupt(self) -> None:
        """Ctrl-C ends it as it ends the other commands."""
        self.exit(return_code=INTERRUPTED)

    def _terminated(self) -> None:
        """SIGTERM: give the terminal back first."""
        self.exit(return_code=128 + signal.SIGTERM)

    def _told(self, _: str) -> None:
        self._dirty = True

    def _view(self) -> View | None:
        """What is looked at; None for a box with a question, and while the application ends."""
        try:
            screen = self.screen
        except ScreenStackError:
            return None
        return screen if isinstance(screen, View) else None

    def _pass_on(self) -> None:
        screen = self._view()
        if not self._dirty or screen is None:
            return
        self._dirty = False
        screen.tell_link()
        screen.changed()

    def _tick(self) -> None:
        screen = self._view()
        if screen is not None and self.known.link == "live":
            screen.tick()
