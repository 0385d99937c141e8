#!/usr/bin/env python3
"""How were the pictures of the live page made? Real runs of the demo, looked at with the system's Chromium.

    python docs/images/shoot.py

It needs what the tests need, and Chromium. The folders of files are left out of the pictures.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright

from hopwatch.demo.run import play

HERE = Path(__file__).parent
WITHOUT_FOLDERS = r"""() => {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode.data.replace(/\/[^\s'"`]*\/(\w+\.py)/g, "$1");
        if (text !== walk.currentNode.data) walk.currentNode.data = text;
    }
}"""


def shoot(page: Any, name: str, **options: Any) -> None:
    """Take one picture, without folders in it."""
    page.wait_for_timeout(400)  # the last change has been drawn
    page.evaluate(WITHOUT_FOLDERS)
    page.screenshot(path=HERE / f"page-{name}.png", **options)


def hung(browser: Any, url: str, cascade: str) -> None:
    """The cascade that hangs: the list, the picture with a hop beside it, the agents, and the same on a phone."""
    page = browser.new_page(viewport={"width": 1280, "height": 760})
    page.goto(f"{url}/")
    page.locator("li.cascade .badge[data-verdict=stalled]").wait_for()
    shoot(page, "list", clip={"x": 0, "y": 0, "width": 1280, "height": 340})
    page.goto(f"{url}/#/cascade/{cascade}")
    page.locator("g.hop[data-look=lit]").click()
    page.locator(".panel .details").wait_for()
    shoot(page, "cascade")
    page.goto(f"{url}/#/agents")
    page.locator("tbody tr").first.wait_for()
    shoot(page, "agents", clip={"x": 0, "y": 0, "width": 1280, "height": 340})
    page.close()
    phone = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark", is_mobile=True)
    phone.goto(f"{url}/#/cascade/{cascade}")
    phone.locator("g.hop[data-look=lit]").wait_for()
    shoot(phone, "phone-dark")
    phone.close()


def locked(browser: Any, url: str, cascade: str) -> None:
    """A deadlock, in the dark."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.goto(f"{url}/#/cascade/{cascade}")
    page.locator(".ring").wait_for()
    shoot(page, "deadlock-dark")
    page.close()


def main() -> None:
    """Run the demo with two faults and write the pictures beside this file."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    for fault, look in (("hang", hung), ("deadlock", locked)):

        def hold(url: str, look: Any = look) -> None:
            (row,) = httpx.get(f"{url}/api/cascades").json()["cascades"]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                look(browser, url, row["cascade"])
                browser.close()

        with tempfile.TemporaryDirectory() as folder:
            outcome = play(fault, lambda _cascade, _outcome: None, hold=hold, folder=Path(folder))
        if outcome.problem is not None:
            raise SystemExit(f"the demo did not give what it must: {outcome.problem}")


if __name__ == "__main__":
    main()
