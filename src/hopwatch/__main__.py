"""How is the command line run without its script? `python -m hopwatch`."""

from __future__ import annotations

from hopwatch.cli import main

if __name__ == "__main__":
    main()
