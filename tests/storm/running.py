"""How is a storm run? Starts the programs of each run, ends what is left of them, and asks a real collector until all is said."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from collector.telling import collector
from hopwatch.demo.run import free_ports
from storm import truth
from ways_out import LAUNCHER, environment

if TYPE_CHECKING:
    from storm.plan import Run

PROGRAM = Path(__file__).with_name("program.py")
LASTS_AT_MOST = 150.0
"""Seconds for one run's processes; on a busy machine a start alone takes some."""
SAID_WITHIN = 90.0
"""Seconds after the last process's end for the verdict: one that is silent is so after 16."""
SETTLES = 8.0
"""Seconds for which a verdict has to hold: a black box is found within 2, or later by a collector that is given no turn."""
TERMINATES_WITHIN = 60.0
"""Seconds that a process has for its end once it was told to; what is killed then is not what its diary says."""
POLL = 0.1


@dataclass
class Done:
    """What came of one run."""

    run: Run
    diary: truth.Diary = field(default_factory=truth.Diary)
    codes: dict[str, int | None] = field(default_factory=dict)
    ended: float = 0.0
    """When the last of its processes had ended (monotonic seconds)."""
    left: float = 0.0
    """When the one that takes the way out had."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """By root; `never heard of` where the collector has no record of it."""
    after: dict[str, float] = field(default_factory=dict)
    """Seconds from the end of the victim to the verdict, by root; 0 where it was there before."""
    hops: Counter[str] = field(default_factory=Counter)
    """By outcome; `open` of those that have none."""
    faults: list[str] = field(default_factory=list)

    def line(self):
        """In one line."""
        run = self.run
        said = ", ".join(
            f"{root} {verdict} {self.after[root]:.1f} s" for root, verdict in self.verdicts.items()
        )
        head = f"{run.number:4} {run.way:13} {run.victim:8} {run.loop:8} step {run.step:2} {run.detail:5}"
        return "\n".join([f"{head} {said}", *(f"     FAULT {each}" for each in self.faults)])


class Storm:
    """All runs of one storm, against one collector and one folder of black boxes."""

    def __init__(self, folder, running, more):
        self.folder = folder
        self.more = more
        self.running = running
        self.url = f"http://127.0.0.1:{running.port}"

    # One run's processes -------------------------------------------------------------------------------------

    def play(self, done):
        """Run it to the end of every process."""
        run = done.run
        diary = self.diary_of(run)
        ports = [str(port) for port in free_ports(2)] if run.victim != "alone" else []
        processes = {}
        until = time.monotonic() + LASTS_AT_MOST
        with contextlib.ExitStack() as stack:
            for role in run.roles:
                words = {
                    "worker": ports[:1],
                    "planner": [*ports[1:], f"http://127.0.0.1:{ports[0]}"] if ports else [],
                    "user": ports[::-1],
                }
                log = stack.enter_context(self.diary_of(run).with_suffix(f".{role}.log").open("w"))
                processes[role] = self.start(run, role, words.get(role, []), diary, log)
            try:
                self.see_to_the_end(done, processes, diary, until)
            finally:
                for process in processes.values():
                    if process.poll() is None:
                        process.kill()
                    process.wait()
        done.codes = {role: process.returncode for role, process in processes.items()}
        done.diary = truth.read(diary)

    def diary_of(self, run):
        return self.folder / f"run-{run.number}.diary"

    def start(self, run, role, words, diary, log):
        env, _ = environment(
            run.loop,
            url=self.url,
            HOPWATCH_BLACKBOX=str(self.folder / "boxes"),
            HOPWATCH_DETAIL=run.detail,
            OTEL_SERVICE_NAME=f"storm-{run.number}-{role}",
            OTEL_INSTRUMENTATION_A2A_SDK_ENABLED="false",
            **self.more,
        )
        command = [LAUNCHER, sys.executable, str(PROGRAM), run.text(), role, str(diary), *words]
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def see_to_the_end(self, done, processes, diary, until):
        run = done.run
        victim = processes[run.victim]
        if run.way == "stop_kill":
            self.kill_when_stopped(victim, processes, done, until)
        if run.victim == "alone":
            self.wait(done, [victim], until)
            return
        user = processes["user"]
        # Until the user has its answer, or somebody has died.
        first = [user, victim] if victim is not user else [user]
        while all(each.poll() is None for each in first) and time.monotonic() < until:
            time.sleep(0.02)
        if victim.poll() is None:
            self.all_said(diary, until)
            if run.victim not in truth.read(diary).left:
                victim.send_signal(signal.SIGUSR1)
            if run.way in truth.ONWARDS:
                self.all_said(diary, until)
            else:
                self.wait(done, [victim], min(until, time.monotonic() + 20))
        else:
            done.left = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                user.wait(1.5)
        if run.way in truth.ONWARDS:
            self.all_said(diary, until)
        for role, process in processes.items():
            if process.poll() is None:
                note(diary, role, "W sigterm")
                process.terminate()
        self.wait(done, processes.values(), time.monotonic() + TERMINATES_WITHIN)

    def kill_when_stopped(self, victim, processes, done, until):
        """What is stopped is killed; a server is told that all is over if it does not come to it."""
        asked = False
        while time.monotonic() < until:
            found = os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None and found.si_code == os.CLD_STOPPED:
                time.sleep(0.3)
                victim.kill()
                victim.wait()
            if found is not None:
                return
            if (
                not asked
                and victim is not processes.get("user")
                and processes.get("user") is not None
                and processes["user"].poll() is not None
            ):
                asked = True
                victim.send_signal(signal.SIGUSR1)
            time.sleep(0.02)

    def wait(self, done, processes, until):
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
        done.left = done.left or time.monotonic()

    def all_said(self, diary, until):
        """Wait until no cascade of the run is in flight, at most 40 s: agents have pushes to send still."""
        until = min(until, time.monotonic() + 40)
        while time.monotonic() < until:
            found = [self.ask(each) for each in truth.read(diary).cascades.values()]
            if found and all(
                each is not None and each["verdict"] not in ("in_flight", "unknown") for each in found
            ):
                return
            time.sleep(POLL)

    # What is said --------------------------------------------------------------------------------------------

    def ask(self, cascade):
        try:
            status, _, body = self.running.request("GET", f"/api/cascades/{cascade}")
        except OSError as error:
            code = self.running.process.poll()
            raise AssertionError(f"the collector does not answer ({error}); its exit code: {code}") from error
        if status == 404:
            return None
        assert status == 200, (status, body)
        return json.loads(body)

    def watch(self, done):
        """Ask until what is said is said for good; a `settled` on the way there is checked as well."""
        path = self.diary_of(done.run)
        since: dict[str, tuple[object, float]] = {}
        began = time.monotonic()
        while True:
            before = truth.read(path)
            now = time.monotonic()
            calm = done.ended > 0
            for root, cascade in before.cascades.items():
                found = self.ask(cascade)
                verdict = found["verdict"] if found is not None else "never heard of"
                if verdict == "settled":
                    wrong = truth.false_settled(before, truth.read(path), root)
                    if wrong and not any("on the way" in each for each in done.faults):
                        done.faults.append(f"FALSE settled on the way: {wrong[:5]} had not ended")
                key = (verdict, found is not None and any(hop["state"] == "open" for hop in found["hops"]))
                if root not in since or since[root][0] != key:
                    since[root] = (key, now)
                over = verdict in truth.ENDED and (not key[1] or verdict in ("unknown", "silent"))
                over = over or verdict == "never heard of"
                calm = calm and over and now - max(since[root][1], done.ended) >= SETTLES
            if (
                calm
                or (done.ended and now - done.ended > SAID_WITHIN)
                or now - began > LASTS_AT_MOST + TERMINATES_WITHIN + SAID_WITHIN
            ):
                break
            time.sleep(POLL)
        for root, (key, at) in since.items():
            done.verdicts[root] = key[0]
            done.after[root] = max(0.0, at - done.left)

    def conclude(self, done):
        """Compare what was said at last with what happened."""
        done.diary = truth.read(self.diary_of(done.run))
        for root, its in done.diary.cascades.items():
            cascade = self.ask(its)
            done.verdicts[root] = cascade["verdict"] if cascade is not None else "never heard of"
            for hop in cascade["hops"] if cascade is not None else ():
                done.hops[hop["outcome"] or "open"] += 1
            done.faults += [f"{root}: {each}" for each in truth.faults(done.run, done.diary, root, cascade)]
        code = truth.wrong_code(done.run, done.diary, done.codes)
        if code is not None:
            done.faults.append(code)


def note(diary, role, what):
    with diary.open("a") as file:
        file.write(f"{role} {what}\n")


def storm(folder, runs, *, jobs=2, tell=lambda done: None, **more):
    """Run a storm.

    Args:
        folder: for diaries, black boxes and the store.
        runs: what happens in it, as `planned` gives it.
        jobs: how many runs at a time.
        tell: is called with each `Done`, as it is done.
        more: environment variables of the programs.

    Returns:
        What came of each.
    """
    plan = [Done(run) for run in runs]
    (folder / "boxes").mkdir(mode=0o700, exist_ok=True)
    with collector(folder / "store.sqlite", "--blackbox", str(folder / "boxes")) as running:
        all_of_it = Storm(folder, running, more)
        slots = threading.Semaphore(jobs)

        def one(done):
            playing = threading.Thread(target=all_of_it.watch, args=(done,))
            try:
                with slots:
                    playing.start()
                    all_of_it.play(done)
            finally:
                done.ended = time.monotonic()
                if playing.ident is not None:
                    playing.join()
            all_of_it.conclude(done)
            tell(done)

        with ThreadPoolExecutor(jobs + 40) as pool:
            try:
                list(pool.map(one, plan))
            except KeyboardInterrupt:  # what has begun comes to its end
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        # At the end of all, nobody shall have been called settled meanwhile who was not.
        for done in plan:
            for root, its in done.diary.cascades.items():
                again = all_of_it.ask(its)
                if (
                    again is not None
                    and again["verdict"] == "settled"
                    and any(w.lost for w in done.diary.of(root))
                ):
                    done.faults.append(f"{root}: FALSE settled at the end of all")
    return plan
