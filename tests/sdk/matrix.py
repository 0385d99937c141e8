"""With which releases of a2a-sdk do the stories hold, on which Python? Runs them in an environment each, and writes the table.

    python tests/sdk/matrix.py                     all of it, and docs/compatibility.md anew
    python tests/sdk/matrix.py --thin              what CI runs: 0.3.26 and 1.0.0 on this Python without databases; nothing is written
    python tests/sdk/matrix.py 1.1.5 --python 3.13 one of it
    python tests/sdk/matrix.py --again             the table from what the last runs of all of it left, without running anything

Environments are kept in `.venv-sdk-*`. A Python that is not installed here is left out, and said so.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parent.parent.parent
TABLE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- made by `make matrix`: do not edit -->", "<!-- end -->"
NEEDS = ("pytest", "pytest-timeout", "pytest-xdist", "uvloop")
EXTRAS = "grpc,http-server,postgresql,sqlite"
"""What of a2a-sdk the stories use."""
MAIN = "3.12"
OTHERS = ("3.10", "3.13")
THINNED = ("0.3.26", "1.3.0")
"""The releases that run on the other Pythons too: the last of each engine."""

STORIES = {
    "blocking": "test_a_blocking_message_is",
    "stream": "test_a_streamed_message_is",
    "pushes": "test_what_is_answered_at_once",
    "hang": "test_work_that_hangs",
    "failure": "test_an_execution_that_raises",
    "second message": "test_a_second_message",
    "cancel": "test_a_task_that_is_cancelled",
    "subscribe": "test_a_subscriber_who_reads",
    "caller leaves": "test_a_caller_who_leaves",
    "webhooks": ("test_each_of_several_webhooks", "test_a_webhook_that"),
    "stores": (
        "test_what_holds_with_tasks_in_memory",
        "test_messages_that_wait_for_one_connection",
        "test_a_database_that_is_slow",
        "test_a_store_that_fails",
    ),
    "0.3 and 1.0": "test_a_client_that_speaks_the_older_protocol",
    "with 0.3.26": "test_two_releases_understand",
    "lost work": ("test_the_task_that_reads_on", "test_a_subscriber_that_"),
}


def python_of(version):
    """An installed Python of this version, on the path or pyenv's; None where there is none that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
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


def environment(release, version, python):
    """The Python of an environment with this release, made where there is none."""
    folder = ROOT / f".venv-sdk-{release}-{version}"
    inside = folder / "bin" / "python"
    made, wanted = folder / "made", f"a2a-sdk[{EXTRAS}]=={release} {' '.join(NEEDS)}"
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        pins = folder / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins.write_text("\n".join(line for line in lines if not line.startswith("a2a-sdk==")))
        subprocess.run(
            [
                *(str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *(
                    "-c",
                    str(pins),
                    f"a2a-sdk[{EXTRAS}]=={release}",
                    "-e",
                    f"{ROOT}[collector,otlp]",
                    *NEEDS,
                ),
            ],
            check=True,
        )
        made.write_text(wanted)
    return str(inside)


def play(release, python, other, *left_out):
    """Run the stories; returns what came of each test, and what the collector said of the work that was lost."""
    report = Path(python).parent.parent / "report.xml"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(
                python,
                "-m",
                "pytest",
                "-q",
                "-n",
                "2",
                "--maxfail",
                "20",
                "--timeout",
                "180",
                "-W",
                "default",
            ),
            *("-p", "no:cacheprovider", f"--junitxml={report}", str(ROOT / "tests" / "sdk"), *left_out),
        ],
        cwd=ROOT,
        env={**os.environ, "HOPWATCH_OTHER_SDK": other if release != "0.3.26" else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        sys.exit(f"a2a-sdk {release}: the stories did not run.\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}")
    outcomes, said = told(report)
    if done.returncode not in (0, 1) or "failed" in outcomes.values():
        print(done.stdout[-6000:])
    return outcomes, said


def told(report):
    """What a report says came of each test, and what the collector said of the work that was lost."""
    outcomes, said = {}, []
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcomes[case.get("name")] = (
            "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        )
        # The rows are for the table of `tests/rows.py`.
        said += [
            (each.get("name"), each.get("value"))
            for each in case.iter("property")
            if each.get("name") != "row"
        ]
    return outcomes, said


def cell(outcomes, names):
    """How many tests of a story passed, of those that this release has."""
    names = (names,) if isinstance(names, str) else names
    mine = [outcome for name, outcome in outcomes.items() if name.startswith(names) and outcome != "skipped"]
    if not mine:
        return "-"
    passed = mine.count("passed")
    return str(passed) if passed == len(mine) else f"**{passed} of {len(mine)}**"


def plain(sentence):
    """A sentence without what is another in each run."""
    sentence = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "...", sentence)
    sentence = re.sub(r"\b[0-9a-f]{16}\b", "...", sentence)
    sentence = re.sub(r"0x[0-9a-f]+", "0x...", sentence)
    sentence = re.sub(r"(?:/[^\s/:]+)+/((?:a2a|tests)/[^\s:]+)", r"\1", sentence)
    sentence = re.sub(r"(tests/sdk/\w+\.py):\d+", r"\1", sentence)
    return re.sub(r"'Task-\d+'", "'Task-n'", re.sub(r"\bTask-\d+:", "Task-n:", sentence))


def table(results):
    """The tables, as Markdown."""
    lines = [
        "| a2a-sdk | Python | " + " | ".join(STORIES) + " |",
        "|---" * (2 + len(STORIES)) + "|",
    ]
    for (release, version), (outcomes, _) in results.items():
        lines.append(
            f"| {release} | {version} | "
            + " | ".join(cell(outcomes, names) for names in STORIES.values())
            + " |"
        )
    sentences = defaultdict(list)
    for (release, version), (_, said) in results.items():
        if version == MAIN:
            for verdict, sentence in said:
                sentences[verdict.split(": ", 1)[0], verdict.split(": ", 1)[1], plain(sentence)].append(
                    release
                )
    if sentences:
        lines += ["", "| what happens | a2a-sdk | verdict | what hopwatch says |", "|---|---|---|---|"]
        lines += [
            f"| {story} | {', '.join(releases)} | {verdict} | {sentence} |"
            for (story, verdict, sentence), releases in sentences.items()
        ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("releases", nargs="*")
    parser.add_argument("--python", default="")
    parser.add_argument("--again", action="store_true", help="the table from the reports that are there")
    parser.add_argument(
        "--where", metavar="VERSION", help="print where this Python is, and end with 1 if it is nowhere"
    )
    parser.add_argument("--thin", action="store_true", help="0.3.26 and 1.0.0, on this Python")
    options = parser.parse_args()
    if options.where:
        found = python_of(options.where)
        sys.exit(1 if found is None else print(found))
    sys.path.insert(0, str(ROOT / "src"))
    from hopwatch.instrumentation.a2a_seams import TESTED

    here = "{}.{}".format(*sys.version_info)
    if options.thin:
        plan = [(release, here) for release in ("0.3.26", "1.0.0")]
    elif options.releases or options.python:
        plan = [(release, options.python or here) for release in options.releases or TESTED]
    else:
        plan = [(release, MAIN) for release in TESTED]
        plan += [(release, version) for version in OTHERS for release in THINNED]
    whole = not (options.thin or options.releases or options.python)
    results, left_out = {}, []
    for release, version in plan:
        if options.again:
            results[release, version] = told(ROOT / f".venv-sdk-{release}-{version}" / "report.xml")
            continue
        python = sys.executable if version == here else python_of(version)
        if python is None:
            left_out.append(f"Python {version} is not installed here: {release} was not run with it")
            continue
        began = time.monotonic()
        other = environment("0.3.26", version, python) if release != "0.3.26" else ""
        found = environment(release, version, python)
        # Databases take half of the time, and `make test` has them with the newest release.
        stores = [f"--ignore={ROOT / 'tests' / 'sdk' / 'test_stores.py'}"] if options.thin else []
        results[release, version] = play(release, found, other, *stores)
        print(f"a2a-sdk {release}, Python {version}: {time.monotonic() - began:.0f} s", flush=True)
    text = table(results)
    print(text, *left_out, sep="\n")
    if whole and not left_out:
        page = TABLE.read_text()
        before, _, rest = page.partition(BEGIN)
        TABLE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
        print(f"{TABLE.relative_to(ROOT)} is written.")
    failed = [
        name for outcomes, _ in results.values() for name, outcome in outcomes.items() if outcome == "failed"
    ]
    sys.exit(bool(failed or (left_out and not whole)))


if __name__ == "__main__":
    main()
