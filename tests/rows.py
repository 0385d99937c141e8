"""With what else was hopwatch run? Runs the tests that stand for a row, and writes the table into docs/compatibility.md.

    python tests/rows.py                 all of them, and the table anew
    python tests/rows.py --again         the table from what the last run left, without running anything

A test stands for a row with `@pytest.mark.row(what, which, *distributions)`; what follows in the mark are the distributions whose releases the table
names. A test that failed makes the command end with 1, and nothing is written. Of a row whose tests were all skipped the table says why.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "compatibility.md"
REPORT = ROOT / ".rows.xml"
BEGIN, END = "<!-- rows: made by `make matrix`: do not edit -->", "<!-- rows: end -->"
HEAD = "| what | which | release | tests |\n|---|---|---|---|"


def run(workers):
    """Run all that is marked; the report says what came of it."""
    REPORT.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-m", "row", "-n", str(workers), "--dist", "worksteal"),
        *("-p", "no:cacheprovider", f"--junitxml={REPORT}", str(ROOT / "tests")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not REPORT.exists():
        sys.exit(f"The tests of the rows did not run.\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}")
    if done.returncode:
        print(done.stdout[-6000:])


def told(report):
    """By row (what, which, releases), what came of its tests: a list of passed, skipped and failed, and of reasons for skips."""
    rows = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        why = next((child.get("message") or "" for child in case if child.tag == "skipped"), "")
        for each in case.iter("property"):
            if each.get("name") == "row":
                what, which, releases = each.get("value").split(" | ", 2)
                rows.setdefault((what.strip(), which.strip(), releases.strip()), []).append((outcome, why))
    return rows


def cell(outcomes):
    """How many tests of a row passed, and what did not."""
    count = {
        kind: sum(outcome == kind for outcome, _ in outcomes) for kind in ("passed", "skipped", "failed")
    }
    if count["failed"]:
        return f"**{count['failed']} of {len(outcomes)} failed**"
    if not count["passed"]:
        reasons = sorted(
            {re.sub(r"(; )?ci: may be skipped", "", why.removeprefix("Skipped: ")) for _, why in outcomes}
        )
        return f"not run: {'; '.join(reasons)}"
    return f"{count['passed']} passed" + (f", {count['skipped']} not run" if count["skipped"] else "")


def table(rows):
    """The rows as Markdown, in the order of their words."""
    lines = [
        "| "
        + " | ".join(
            text.replace("|", "\\|")
            for text in (what, which, releases or "-", cell(rows[what, which, releases]))
        )
        + " |"
        for what, which, releases in sorted(rows, key=lambda row: tuple(word.lower() for word in row))
    ]
    return "\n".join([HEAD, *lines])


def problems(rows):
    """What is wrong with the rows, in a sentence each."""
    if not rows:
        yield "no test stands for a row"
    for (what, which, _), outcomes in sorted(rows.items()):
        failed = sum(outcome == "failed" for outcome, _ in outcomes)
        if failed:
            yield f"{what}, {which}: {failed} of {len(outcomes)} tests failed"


def written(page, text):
    """The page with the table between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{TABLE.name} has no place for the table: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="store_true", help="the table from the report that is there")
    parser.add_argument("--workers", type=int, default=3, help="how many tests run at once")
    options = parser.parse_args()
    began = time.monotonic()
    if not options.again:
        run(options.workers)
    elif not REPORT.exists():
        sys.exit(f"There is no report of a run: {REPORT.name} is missing.")
    rows = told(REPORT)
    text = f"{table(rows)}\n\nRun on Python {'{}.{}'.format(*sys.version_info)}."
    print(text)
    print(f"{len(rows)} rows, {time.monotonic() - began:.0f} s")
    wrong = list(problems(rows))
    if wrong:
        sys.exit("\n".join(wrong))
    TABLE.write_text(written(TABLE.read_text(), text))
    print(f"{TABLE.relative_to(ROOT)} is written.")


if __name__ == "__main__":
    main()
