"""What goes into the tables of docs/compatibility.md? What the reports say that the sessions of `noxfile.py` leave.

    python tests/tables.py          prints the tables, and writes them anew unless a report is missing or tells of a failure

A row of the last table is a mark of the tests that stand for it, `@pytest.mark.row(what, which, *distributions)`; the distributions are those whose
releases the table names. Of a row whose tests were all skipped the table says why.
"""

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from hopwatch.instrumentation import a2a_seams, acp_seams  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
REPORTS = ROOT / ".reports"
MAIN = "3.12"
"""The Python on which every release runs. What it says of the work that is lost is in a table of its own."""
OTHERS = ("3.10", "3.13")
OLDER = "0.3.26"
"""The release of a2a-sdk that the others are tried with: the last of the older engine."""


@dataclass(frozen=True)
class Run:
    """The stories, run with one release of a library on one Python."""

    library: str
    release: str
    python: str

    @property
    def name(self):
        """Of the session, and of its report."""
        return f"{self.library}-{self.release}-py{self.python}"


@dataclass(frozen=True)
class Stories:
    """The stories of a library: their folder, the column that each is in by the beginnings of the tests' names, and which releases run them."""

    folder: str
    said: str
    """What the sentences are, that the tests note of the work that is lost."""
    releases: tuple[str, ...]
    everywhere: tuple[str, ...]
    """Those that run on the other Pythons too."""
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)


STORIES = {
    "a2a-sdk": Stories(
        "tests/sdk",
        "what hopwatch says",
        a2a_seams.TESTED,
        (OLDER, a2a_seams.TESTED[-1]),
        {
            "blocking": ("test_a_blocking_message_is",),
            "stream": ("test_a_streamed_message_is",),
            "pushes": ("test_what_is_answered_at_once",),
            "hang": ("test_work_that_hangs",),
            "failure": ("test_an_execution_that_raises",),
            "second message": ("test_a_second_message",),
            "cancel": ("test_a_task_that_is_cancelled",),
            "subscribe": ("test_a_subscriber_who_reads",),
            "caller leaves": ("test_a_caller_who_leaves",),
            "webhooks": ("test_each_of_several_webhooks", "test_a_webhook_that"),
            "stores": (
                "test_what_holds_with_tasks_in_memory",
                "test_messages_that_wait_for_one_connection",
                "test_a_database_that_is_slow",
                "test_a_store_that_fails",
            ),
            "0.3 and 1.0": ("test_a_client_that_speaks_the_older_protocol",),
            "with 0.3.26": ("test_two_releases_understand",),
            "lost work": ("test_the_task_that_reads_on", "test_a_subscriber_that_"),
        },
    ),
    "agent-client-protocol": Stories(
        "tests/acp",
        "what hopwatch says of the process",
        acp_seams.TESTED,
        (acp_seams.TESTED[0], acp_seams.TESTED[-1]),
        {
            "hops": ("test_a_prompt_with", "test_a_request_", "test_a_handler_that", "test_a_notification_whose", "test_what_a_handler"),
            "`_meta`": ("test_what_goes_out", "test_a_handler_gets", "test_a_handler_without", "test_keys_of", "test_baggage", "test_what_looks_like"),
            "answers, peers": ("test_an_answer", "test_an_acknowledgement", "test_a_cascade_is_settled_up_to", "test_an_error_of", "test_nobody_knows", "test_a_notification_to", "test_what_an_agent_sends", "test_what_a_peer", "test_nothing_"),
            "waits": ("test_who_", "test_whose_", "test_after_one_error"),
            "service loops": ("test_a_connection_that_was_made", "test_what_a_message_starts", "test_a_connection_that_is_closed"),
            "orphaned loops": ("test_a_cancelled_run_agent", "test_loops_that", "test_a_client_that_nobody", "test_whoever_still", "test_a_bridge_"),
            "the same without": ("test_a_client_and_an_agent", "test_a_cascade_of_everything", "test_a_connection_that_was_there", "test_a_connection_goes_on", "test_what_was_wrapped", "test_the_library_may"),
            "stdio": ("test_a_prompt_over_stdio", "test_an_agent_", "test_an_editor_"),
            "WebSocket, Streamable HTTP": ("test_a_prompt_over_the_web",),
        },
    ),
}  # fmt: skip

PLAN = [
    Run(library, release, python)
    for library, stories in STORIES.items()
    for python in (MAIN, *OTHERS)
    for release in (stories.releases if python == MAIN else stories.everywhere)
]

ROWS = ("rows", "rows-neighbours")
"""The sessions that run what stands for a row of what else hopwatch was run with, on the main Python."""


def report(name):
    """Where the report of a session is."""
    return REPORTS / f"{name}.xml"


# What reports say ------------------------------------------------------------------------------------------------


def _cases(path):
    """Of each test of a report: its name, what came of it, why it was skipped, and what it noted."""
    for case in ET.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        why = next((child.get("message") or "" for child in case if child.tag == "skipped"), "")
        yield (
            case.get("name"),
            outcome,
            why,
            [(each.get("name"), each.get("value")) for each in case.iter("property")],
        )


def told(path):
    """What came of each test, and what was said of the work that was lost."""
    outcomes, said = {}, []
    for name, outcome, _, noted in _cases(path):
        outcomes[name] = outcome
        said += [(story, sentence) for story, sentence in noted if story != "row"]
    return outcomes, said


def told_of_rows(path):
    """By row (what, which, releases), what came of its tests: a list of passed, skipped and failed, and of reasons for skips."""
    rows = {}
    for _, outcome, why, noted in _cases(path):
        for name, value in noted:
            if name == "row":
                what, which, releases = value.split(" | ", 2)
                rows.setdefault((what.strip(), which.strip(), releases.strip()), []).append((outcome, why))
    return rows


# Tables ----------------------------------------------------------------------------------------------------------


def cell(outcomes, names):
    """How many tests of a story passed, of those that this release has."""
    mine = [outcome for name, outcome in outcomes.items() if name.startswith(names) and outcome != "skipped"]
    if not mine:
        return "-"
    passed = mine.count("passed")
    return str(passed) if passed == len(mine) else f"**{passed} of {len(mine)}**"


def plain(sentence):
    """A sentence without what is another in each run or on each Python."""
    sentence = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "...", sentence)
    sentence = re.sub(r"\b[0-9a-f]{16}\b", "...", sentence)
    sentence = re.sub(r"0x[0-9a-f]+", "0x...", sentence)
    sentence = re.sub(r"(?:/[^\s/:]+)+/((?:a2a|tests)/[^\s:]+)", r"\1", sentence)
    sentence = re.sub(r"(tests/sdk/\w+\.py):\d+", r"\1", sentence)
    sentence = re.sub(r", was asked to cancel and has ended", ", has ended", sentence)
    return re.sub(r"'Task-\d+'", "'Task-n'", re.sub(r"\bTask-\d+:", "Task-n:", sentence))


def table(library, results):
    """The tables of a library as Markdown: what came of the stories, and what was said of the work that was lost.

    Args:
        library: its name.
        results: by run, as `told` has it.
    """
    stories = STORIES[library]
    lines = [
        f"| {library} | Python | " + " | ".join(stories.columns) + " |",
        "|---" * (2 + len(stories.columns)) + "|",
    ]
    sentences = defaultdict(list)
    for run, (outcomes, said) in results.items():
        cells = (cell(outcomes, names) for names in stories.columns.values())
        lines.append(f"| {run.release} | {run.python} | " + " | ".join(cells) + " |")
        if run.python == MAIN:
            for what, sentence in said:
                story, _, verdict = what.rpartition(": ")
                sentences[story, verdict, plain(sentence)].append(run.release)
    if sentences:
        lines += ["", f"| what happens | {library} | verdict | {stories.said} |", "|---|---|---|---|"]
        lines += [
            f"| {story} | {', '.join(releases)} | {verdict} | {sentence} |"
            for (story, verdict, sentence), releases in sentences.items()
        ]
    return "\n".join(lines)


def cell_of_row(outcomes):
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


def table_of_rows(rows):
    """The rows as Markdown, in the order of their words."""
    lines = [
        "| "
        + " | ".join(
            text.replace("|", "\\|")
            for text in (what, which, releases or "-", cell_of_row(rows[what, which, releases]))
        )
        + " |"
        for what, which, releases in sorted(rows, key=lambda row: tuple(word.lower() for word in row))
    ]
    return "\n".join(["| what | which | release | tests |", "|---|---|---|---|", *lines])


def written(page, name, text):
    """The page with a table between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}: made by `make matrix`, do not edit -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise ValueError(f"{PAGE.name} has no place for the table: {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main():
    """Print the tables, and write them or say why not."""
    wrong = [f"there is no report of {run.name}" for run in PLAN if not report(run.name).exists()]
    wrong += [f"there is no report of {name}" for name in ROWS if not report(name).exists()]
    if wrong:
        sys.exit("Nothing is written: " + "; ".join(wrong))
    page = PAGE.read_text()
    for library in STORIES:
        results = {run: told(report(run.name)) for run in PLAN if run.library == library}
        wrong += [
            f"{run.name}: {name} failed"
            for run, (outcomes, _) in results.items()
            for name, outcome in outcomes.items()
            if outcome == "failed"
        ]
        text = table(library, results)
        print(text, end="\n\n")
        page = written(page, library, text)
    rows = {row: outcomes for name in ROWS for row, outcomes in told_of_rows(report(name)).items()}
    text = table_of_rows(rows)
    print(text, end="\n\n")
    wrong += problems(rows)
    if wrong:
        sys.exit("Nothing is written:\n" + "\n".join(wrong))
    PAGE.write_text(written(page, "rows", f"{text}\n\nRun on Python {MAIN}."))
    print(f"{PAGE.relative_to(ROOT)} is written.")


def problems(rows):
    """What is wrong with the rows, in a sentence each."""
    if not rows:
        yield "no test stands for a row"
    for (what, which, _), outcomes in sorted(rows.items()):
        failed = sum(outcome == "failed" for outcome, _ in outcomes)
        if failed:
            yield f"{what}, {which}: {failed} of {len(outcomes)} tests failed"


if __name__ == "__main__":
    main()
