"""What came of a storm? A table of the ways out, as Markdown."""

from __future__ import annotations

import statistics

from storm.plan import WAYS

VERDICTS = ("settled", "broken", "unknown", "silent", "stranded", "never heard of")
OUTCOMES = ("finished", "failed", "cancelled", "abandoned", "open")


def table(found, seed):
    """The table of a storm's runs, and a line of sums under it."""
    head = [
        "way out",
        "runs",
        "work lost",
        *VERDICTS,
        "other",
        *(f"hops {each}" for each in OUTCOMES),
        "median s",
        "worst s",
        "false settled",
    ]
    rows = [head, ["---", *(["---:"] * (len(head) - 1))]]
    for way in (*WAYS, None):
        runs = [done for done in found if way in (None, done.run.way)]
        if not runs:
            continue
        said = [verdict for done in runs for verdict in done.verdicts.values()]
        times = [after for done in runs for after in done.after.values()] or [0.0]
        false = sum(any("FALSE" in each for each in done.faults) for done in runs)
        rows.append(
            [
                way or "all",
                str(len(runs)),
                str(sum(work.lost for done in runs for work in done.diary.work.values())),
                *(str(said.count(each)) for each in VERDICTS),
                str(sum(each not in VERDICTS for each in said)),
                *(str(sum(done.hops[each] for done in runs)) for each in OUTCOMES),
                f"{statistics.median(times):.1f}",
                f"{max(times):.1f}",
                str(false),
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    faulty = sum(bool(done.faults) for done in found)
    lines.append("")
    lines.append(f"Seed {seed}, {len(found)} runs: {faulty} with a fault.")
    return "\n".join(lines)
