"""With which releases of agent-client-protocol do the stories hold, on which Python? As `tests/sdk/matrix.py` for the A2A SDK.

    python tests/acp/matrix.py                      all of it, and docs/compatibility.md anew
    python tests/acp/matrix.py --thin               what CI runs: 0.8.1 on this Python, and nothing is written
    python tests/acp/matrix.py 0.10.1 --python 3.13 one of it
    python tests/acp/matrix.py --again              the table from what the last runs of all of it left, without running anything

Environments are kept in `.venv-acp-*`. A Python that is not installed here is left out, and said so.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_spec = importlib.util.spec_from_file_location("sdk_matrix", ROOT / "tests" / "sdk" / "matrix.py")
sdk = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sdk)

BEGIN, END = (
    "<!-- made by `make matrix` for agent-client-protocol: do not edit -->",
    "<!-- end of agent-client-protocol -->",
)
NEEDS = ("httpx[http2]", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "websockets")
MAIN = "3.12"
OTHERS = ("3.10", "3.13")
THINNED = ("0.8.1", "0.12.1")
"""The releases that run on the other Pythons too: the last with a dispatcher that is tested first, and the newest."""

STORIES = {
    "hops": ("test_a_prompt_with", "test_a_request_", "test_a_handler_that", "test_a_notification_whose", "test_what_a_handler"),
    "`_meta`": ("test_what_goes_out", "test_a_handler_gets", "test_a_handler_without", "test_keys_of", "test_baggage", "test_what_looks_like"),
    "answers, peers": ("test_an_answer", "test_an_acknowledgement", "test_a_cascade_is_settled_up_to", "test_an_error_of", "test_nobody_knows", "test_a_notification_to", "test_what_an_agent_sends", "test_what_a_peer", "test_nothing_"),
    "waits": ("test_who_", "test_whose_", "test_after_one_error"),
    "service loops": ("test_a_connection_that_was_made", "test_what_a_message_starts", "test_a_connection_that_is_closed"),
    "orphaned loops": ("test_a_cancelled_run_agent", "test_loops_that", "test_a_client_that_nobody", "test_whoever_still", "test_a_bridge_"),
    "the same without": ("test_a_client_and_an_agent", "test_a_cascade_of_everything", "test_a_connection_that_was_there", "test_a_connection_goes_on", "test_what_was_wrapped", "test_the_library_may"),
    "stdio": ("test_a_prompt_over_stdio", "test_an_agent_", "test_an_editor_"),
    "WebSocket, Streamable HTTP": "test_a_prompt_over_the_web",
}  # fmt: skip


def environment(release, version, python):
    """The Python of an environment with this release, made where there is none."""
    folder = ROOT / f".venv-acp-{release}-{version}"
    inside, made = folder / "bin" / "python", folder / "made"
    if not made.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        pins = folder / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins.write_text("\n".join(line for line in lines if not line.startswith("agent-client-protocol==")))
        install = [
            str(inside),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-c",
            str(pins),
        ]
        wanted = [f"agent-client-protocol=={release}", "-e", f"{ROOT}[collector,otlp]", *NEEDS]
        subprocess.run([*install, *wanted], check=True)
        made.touch()
    return str(inside)


def play(release, python):
    """Run the stories; returns what came of each test, and what was said of the loops that nobody owns."""
    report = Path(python).parent.parent / "report.xml"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", "--maxfail", "20", "--timeout", "180", "-W", "default",
         "-p", "no:cacheprovider", f"--junitxml={report}", str(ROOT / "tests" / "acp")],
        cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not report.exists():
        sys.exit(
            f"agent-client-protocol {release}: the stories did not run.\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
        )
    outcomes, said = sdk.told(report)
    if done.returncode not in (0, 1) or "failed" in outcomes.values():
        print(done.stdout[-6000:])
    return outcomes, said


def plain(sentence):
    """A sentence without what is another in each run or on each Python."""
    return re.sub(r", was asked to cancel and has ended", ", has ended", sdk.plain(sentence))


def table(results):
    """The tables, as Markdown."""
    lines = [
        "| agent-client-protocol | Python | " + " | ".join(STORIES) + " |",
        "|---" * (2 + len(STORIES)) + "|",
    ]
    for (release, version), (outcomes, _) in results.items():
        cells = (sdk.cell(outcomes, names) for names in STORIES.values())
        lines.append(f"| {release} | {version} | " + " | ".join(cells) + " |")
    sentences = defaultdict(list)
    for (release, version), (_, said) in results.items():
        if version == MAIN:
            for what, sentence in said:
                story, _, verdict = what.rpartition(": ")
                sentences[story, verdict, plain(sentence)].append(release)
    if sentences:
        lines += [
            "",
            "| what happens | agent-client-protocol | verdict | what hopwatch says of the process |",
            "|---|---|---|---|",
        ]
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
    parser.add_argument("--thin", action="store_true", help="0.8.1, on this Python")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    from hopwatch.instrumentation.acp_seams import TESTED

    here = "{}.{}".format(*sys.version_info)
    if options.thin:
        plan = [("0.8.1", here)]
    elif options.releases or options.python:
        plan = [(release, options.python or here) for release in options.releases or TESTED]
    else:
        plan = [(release, MAIN) for release in TESTED]
        plan += [(release, version) for version in OTHERS for release in THINNED]
    whole = not (options.thin or options.releases or options.python)
    results, left_out = {}, []
    for release, version in plan:
        if options.again:
            report = ROOT / f".venv-acp-{release}-{version}" / "report.xml"
            if report.exists():
                results[release, version] = sdk.told(report)
            else:
                left_out.append(f"{release} on Python {version} was not run here.")
            continue
        python = sys.executable if version == here else sdk.python_of(version)
        if python is None:
            left_out.append(f"Python {version} is not installed here: {release} was not run with it")
            continue
        began = time.monotonic()
        found = environment(release, version, python)
        results[release, version] = play(release, found)
        print(
            f"agent-client-protocol {release}, Python {version}: {time.monotonic() - began:.0f} s", flush=True
        )
    text = "\n\n".join([table(results), *left_out])
    print(text)
    if whole and (options.again or not left_out):
        page = sdk.TABLE.read_text()
        before, _, rest = page.partition(BEGIN)
        sdk.TABLE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
        print(f"{sdk.TABLE.relative_to(ROOT)} is written.")
    failed = [
        name for outcomes, _ in results.values() for name, outcome in outcomes.items() if outcome == "failed"
    ]
    sys.exit(bool(failed or (left_out and not whole)))


if __name__ == "__main__":
    main()
