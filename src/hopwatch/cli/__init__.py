"""What happens when somebody types `hopwatch`?

Nothing is imported here, so that `hopwatch.cli.picture` can be used without the rest.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of the script `hopwatch` and of `python -m hopwatch.cli`."""
    if sys.argv[1:2] == ["run"]:  # an agent has the launcher, and need not have the extra
        from hopwatch.cli.run import main as launch  # noqa: PLC0415 - each command loads what it needs

        launch()
    try:
        import httpx  # noqa: F401, PLC0415
        import rich  # noqa: F401, PLC0415 - the commands load it only when they draw

        from hopwatch.cli.commands import run  # noqa: PLC0415 - an agent has the script without the extra
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich", "httpx"):
            raise
        sys.stderr.write(
            f"Error: the command line needs {error.name}, which is not installed. Remedy: pip install 'hopwatch[collector]', or '.[collector]' in a checkout\n"
        )
        sys.exit(1)
    run()
