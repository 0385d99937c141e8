"""Which agent of the demo is this, on a2a-sdk 0.3? The same programs; only what `plain` gives them is another."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    del sys.argv[0]
    # Their `plain` is the one beside this file, which stands first on the path.
    runpy.run_path(str(Path(__file__).parent.parent / sys.argv[0]), run_name="__main__")
