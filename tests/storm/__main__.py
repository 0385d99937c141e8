"""Is a verdict ever false, however a process ends? `python -m storm --runs 200 --seed 1` prints the table and says so."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from storm.plan import planned
from storm.running import storm
from storm.table import table


def main():
    parser = argparse.ArgumentParser(prog="python -m storm", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument(
        "--only",
        type=int,
        action="append",
        default=[],
        help="only the run of this number; may be given again",
    )
    parser.add_argument("--keep", type=Path, help="a folder for the diaries and what the programs printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hopwatch-storm-") as folder:
        at = options.keep or Path(folder)
        at.mkdir(exist_ok=True)

        def tell(done):
            print(done.line(), file=sys.stderr, flush=True)

        plan = planned(options.seed, options.runs)
        if options.only:
            plan = [run for run in plan if run.number in options.only]
        found = storm(at, plan, jobs=options.jobs, tell=tell)
    print(table(found, options.seed))
    return 1 if any(done.faults for done in found) else 0


if __name__ == "__main__":
    sys.exit(main())
