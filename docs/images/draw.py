#!/usr/bin/env python3
"""How was the picture in the README made? A real run of the demo with the fault `hang`, drawn by hopwatch itself.

    python docs/images/draw.py

Two things are left out, so that the picture fits: the folders of files, and of each await chain the frames that are
not the demo's own.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI

from hopwatch.cli import picture
from hopwatch.demo.run import AGENTS, play

FAULT = "hang"
COLUMNS = 118


def shortened(value: Any) -> Any:
    """A value of the API's object without folders, and with only the demo's own frames in its await chains."""
    if isinstance(value, dict):
        return {
            key: [shortened(frame) for frame in each if frame.startswith(str(AGENTS))]
            if key == "chain"
            else shortened(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [shortened(each) for each in value]
    return (
        re.sub(r"/\S*/(\w+\.py:\d+)", r"\1", value.replace(f"{AGENTS}/", ""))
        if isinstance(value, str)
        else value
    )


def main() -> None:
    """Run the demo and write the picture beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = play(FAULT, lambda _cascade, _outcome: None, folder=Path(folder))
    if outcome.problem is not None or outcome.cascade is None:
        raise SystemExit(f"the demo did not give what it must: {outcome.problem}")
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(picture.tree(shortened(outcome.cascade)))
    svg = console.export_svg(title=f"hopwatch demo --fault {FAULT}", theme=MONOKAI, unique_id="hopwatch")
    # The reader's own monospaced font will do: a picture in a repository fetches nothing.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (Path(__file__).parent / f"{FAULT}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
