"""What happens when somebody types `hopwatch`?

Nothing is imported here, so that `hopwatch.cli.picture` can be used without the rest.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; the entry point of the script `hopwatch` and of `python -m hopwatch`."""
    if sys.argv[1:2] == ["run"]:  # an agent has the launcher, and need not have the extra
        from hopwatch.cli.run import main as launch  # noqa: PLC0415 - each command loads what it needs

        launch()
    # An agent has the script without the extra, and may have some of what that brings.
    missing = [name for name in ("click", "httpx", "rich") if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"Error: the command line needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Remedy: pip install 'hopwatch[collector]', or '.[collector]' in a checkout\n"
        )
        sys.exit(1)
    from hopwatch.cli.commands import run  # noqa: PLC0415 - each command loads what it needs

    run()
