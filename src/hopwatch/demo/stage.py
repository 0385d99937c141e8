"""How does the demo look? A live tree in a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from hopwatch.cli import picture

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from hopwatch.demo.faults import Cascade, Fault
    from hopwatch.demo.run import Outcome


class Stage:
    """Shows a run of the demo."""

    def __init__(self, fault: str, planted: Fault, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console()
        self._live: Live | None = None
        self._told = ""
        self._fault = fault
        self._planted = planted

    def __enter__(self) -> Self:
        if not self._quiet:
            due = f"the verdict must be {self._planted.verdict}"
            self._say(f"Three A2A agents and a user. Planted: {self._planted.about}; {due}.")
            if self._console.is_terminal:
                self._live = Live(console=self._console, refresh_per_second=8, transient=True)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, cascade: Cascade, outcome: Outcome) -> None:
        """Show the cascade as it stands."""
        if self._quiet:
            return
        if self._live is not None:
            # What is higher than the screen cannot be redrawn; the whole of it stands at the end.
            self._live.update(picture.tree(cascade, limit=max(4, (self._console.height - 8) // 2)))
            return
        # The age of a silence changes at every look; the line is only worth another one when what it says changes.
        told = f"{cascade['verdict']}: {cascade['reason']}"
        key = f"{cascade['verdict']} {cascade['frontier']}"
        if key != self._told:
            self._told = key
            self._say(f"{outcome.history[-1][0] if outcome.history else 0:6.2f} s  {told}")

    def hold(self, url: str) -> None:
        """Keep everything running until somebody presses control-C."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._say(
            f"Still running, with the collector at {url}; try `hopwatch ls --url {url}`. Control-C ends it."
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return

    def verdict(self, outcome: Outcome) -> None:
        """Show how it ended."""
        cascade: dict[str, Any] | None = outcome.cascade
        if cascade is not None and self._console.is_terminal:
            self._console.print(picture.tree(cascade))
        elif cascade is not None:
            for line in picture.lines(cascade):
                self._say(line)
        if outcome.ended is not None:
            self._say(_ending(outcome.ended))
        times = f" {outcome.after} s after its start" if outcome.after is not None else ""
        if outcome.prompt is not None:
            times += f", {outcome.prompt} s after what caused it"
        lag = (
            f", {outcome.lag} s after the last hop's end"
            if outcome.verdict == "settled" and outcome.lag is not None
            else ""
        )
        last = outcome.history[-1][1] if outcome.history else outcome.verdict
        # What is planted may be undone while it is watched; what is shown is what was to be seen until then.
        then = f", as shown above, and {last} in the end" if last != outcome.verdict else ""
        if outcome.problem is None:
            self._say(f"As it must be: {outcome.verdict}{times}{lag}{then}.")
        else:
            self._say(f"Not as it must be ({outcome.expected}): {outcome.problem}.")


def _ending(ended: dict[str, Any]) -> str:
    """How an agent ended, in a sentence."""
    pending = ", ".join(f"{count} {kind}" for kind, count in sorted(ended["pending"].items())) or "nothing"
    return (
        f"The {ended['agent']} ended with {ended['exit_code']} ({ended['how']}). Pending was then: {pending}."
    )
