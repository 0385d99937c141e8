#!/usr/bin/env python3
"""How was the picture of `hopwatch top` made? A real run of the demo with the fault `hang`, looked at by keys.

    python docs/images/sit.py

Two things are left out, so that the picture fits: the folders of files, and of each await chain the frames that are
not the demo's own. The picture is Textual's own export.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draw import shortened

from hopwatch.cli.top.app import Top
from hopwatch.cli.top.cascade import CascadeView
from hopwatch.demo.run import play

if TYPE_CHECKING:
    from collections.abc import Callable

FAULT = "hang"
SIZE = (126, 36)


async def until(what: Callable[[], object]) -> None:
    """Wait for something, for a minute at most."""
    over = time.monotonic() + 60
    while not what():
        if time.monotonic() > over:
            raise SystemExit("the screen does not show what it must")
        await asyncio.sleep(0.05)


async def look(url: str) -> str:
    """From the list into the cascade, and to the hop at its frontier; returns the picture."""
    app = Top(url)
    take = app.known.take
    app.known.take = lambda event, data, watched: take(event, shortened(data), watched)  # type: ignore[method-assign]
    async with app.run_test(size=SIZE) as pilot:
        await until(lambda: any(row["verdict"] == "stalled" for row in app.known.cascades.values()))
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, CascadeView) and app.screen.study is not None)
        await pilot.pause(0.5)
        await pilot.press("enter")
        await pilot.pause(1.0)
        return app.export_screenshot(title="hopwatch top")


def main() -> None:
    """Run the demo and write the picture beside this file."""
    pictures: list[str] = []

    def hold(url: str) -> None:
        pictures.append(asyncio.run(look(url)))

    with tempfile.TemporaryDirectory() as folder:
        outcome: Any = play(FAULT, lambda _cascade, _outcome: None, hold=hold, folder=Path(folder))
    if outcome.problem is not None:
        raise SystemExit(f"the demo did not give what it must: {outcome.problem}")
    # The reader's own monospaced font will do: a picture in a repository fetches nothing.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", pictures[0], flags=re.DOTALL)
    svg = re.sub(r"terminal-\d+", "hopwatch", svg)
    (Path(__file__).parent / "top.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
