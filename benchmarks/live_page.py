"""How long does a change at an agent take to the live page? A real agent, a real collector, a real Chromium.

    python benchmarks/live_page.py

It needs Chromium and what the tests need. A cascade begins and ends every 1.4 s; the page's own elements are watched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "collector"))

from browsing import Watched, chromium
from telling import collector

CHANGES = 40
LASTS = 1.37
AGENT = f"""
import asyncio, sys, time
import hopwatch

async def main():
    for number in range({CHANGES}):
        async with hopwatch.cascade(f"change {{number}}") as cascade:
            begun = time.time()
            await asyncio.sleep({LASTS})
        print(cascade.id, begun, time.time(), flush=True)

asyncio.run(main())
"""
NOTE_DOWN = """() => {
    window.seen = {};
    new MutationObserver(() => {
        for (const row of document.querySelectorAll("li.cascade")) {
            const key = row.querySelector("a").getAttribute("href").slice(-32) + " " + row.dataset.verdict;
            seen[key] ??= Date.now() / 1000;
        }
    }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def main():
    with (
        chromium() as browser,
        collector(":memory:") as running,
        tempfile.TemporaryDirectory() as folder,
    ):
        page = Watched(browser, f"http://127.0.0.1:{running.port}").open()
        page.locator("#link[data-link=live]").wait_for()
        page.evaluate(NOTE_DOWN)
        program = Path(folder) / "agent.py"
        program.write_text(AGENT)
        told = subprocess.run(
            [sys.executable, "-m", "hopwatch", "run", "--", sys.executable, str(program)],
            env={
                **os.environ,
                "HOPWATCH_URL": f"http://127.0.0.1:{running.port}",
                "HOPWATCH_BLACKBOX": "off",
            },
            stdout=subprocess.PIPE,
            text=True,
            timeout=CHANGES * (LASTS + 5),
            check=True,
        ).stdout.split()
        time.sleep(3)
        seen = page.evaluate("seen")
    begun = dict(zip(told[::3], map(float, told[1::3]), strict=True))
    ended = dict(zip(told[::3], map(float, told[2::3]), strict=True))
    for name, moments, verdict in (("begun", begun, "in_flight"), ("ended", ended, "settled")):
        lags = sorted(
            seen[f"{key} {verdict}"] - at for key, at in moments.items() if f"{key} {verdict}" in seen
        )
        print(
            f"{name}: {len(lags)} of {CHANGES} on the page, after {lags[len(lags) // 2]:.2f} s (median),"
            f" {lags[int(len(lags) * 0.95)]:.2f} s (p95), {lags[-1]:.2f} s at most"
        )


if __name__ == "__main__":
    main()
