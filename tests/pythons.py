"""Where is a Python of this version here? On the path, or kept by pyenv.

python tests/pythons.py 3.13      prints where it is, and ends with 1 if it is nowhere
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def where(version):
    """An installed Python of this version; None where there is none that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    # Of pyenv's own there is one on the path for each version; it runs only where that version is chosen.
    for found in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        if found is None:
            continue
        said = subprocess.run(
            [str(found), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.stdout.strip() == version:
            return str(found)
    return None


if __name__ == "__main__":
    answer = where(sys.argv[1])
    sys.exit(1 if answer is None else print(answer))
