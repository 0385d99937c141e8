"""How do the tests sit before `hopwatch top`? Textual's pilot for the keys, the lines of the screen as texts."""

from __future__ import annotations

import asyncio
import time
import unicodedata

from hopwatch.cli.top.app import Top

DEADLINE = 60.0


class Sitting:
    """Somebody before the screen."""

    def __init__(self, app, pilot) -> None:
        self.app = app
        self.press = pilot.press
        self.pilot = pilot

    def rows(self):
        """What stands on the screen, line by line."""
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    def text(self):
        """The same as one text."""
        return "\n".join(self.rows())

    def row(self, *words):
        """The first line of the screen that has all of these words; None for none."""
        return next((row for row in self.rows() if all(word in row for word in words)), None)

    async def until(self, what, seconds=DEADLINE):
        """The first thing that is true of what `what` gives."""
        over = time.monotonic() + seconds
        while True:
            await self.pilot.pause()
            found = what()
            if found:
                return found
            assert time.monotonic() < over, self.text()
            await asyncio.sleep(0.02)

    async def see(self, *words):
        """Wait until a line of the screen has all of these words."""
        return await self.until(lambda: self.row(*words))

    async def gone(self, *words):
        """Wait until no line of the screen has all of these words."""
        await self.until(lambda: self.row(*words) is None)

    async def open(self, cascade):
        """From the list to one cascade."""
        await self.see("live")
        await self.until(lambda: cascade in self.app.known.cascades)
        await self.until(lambda: self.app.screen.rows.go_to(cascade))
        await self.press("enter")
        await self.see("Cascade", cascade[:8])

    def harmless(self):
        """Whether nothing on the screen moves the cursor, hides itself or turns the direction of writing."""
        return not {
            character
            for row in self.rows()
            for character in row
            if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        }


def sit(at, story, *, size=(120, 36), **options):
    """Run `story(sitting)` before a real screen of that size, at a collector or its address."""
    url = at if isinstance(at, str) else f"http://127.0.0.1:{at.port}"

    async def go():
        app = Top(url, **options)
        async with app.run_test(size=size) as pilot:
            await story(Sitting(app, pilot))

    asyncio.run(asyncio.wait_for(go(), 420))
