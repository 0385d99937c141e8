"""Is anything recorded of what users send each other? Agents with a secret in every place, and a look into all that is kept."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from pathlib import Path

import httpx
import pytest
from guarded import token_file

from hopwatch.cli import ps
from hopwatch.demo.run import AGENTS, Cast, agent_environment, free_ports, launcher, wait_for_card
from waiting import until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(480)]

PROGRAM = str(Path(__file__).with_name("secretive_agents.py"))
# As talkative as OpenTelemetry can be made: bodies of logs, all headers in the spans of other instrumentations.
TALKATIVE = {
    "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "true",
    "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
    **{
        f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_{side}_{what}": ".*"
        for side in ("SERVER", "CLIENT")
        for what in ("REQUEST", "RESPONSE")
    },
    "HOPWATCH_DETAIL": "all",
}


def kept(*folders):
    """Every file in the folders, with what is in it."""
    out = {}
    for folder in folders:
        for path in Path(folder).rglob("*"):
            # A box goes as soon as the collector has told of it, also while one looks.
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.is_socket():
                    out[str(path)] = path.read_bytes()
    return out


def test_no_header_message_or_argument_of_a_user_is_in_store_boxes_or_answers(tmp_path):
    salt = "zq" + secrets.token_hex(12)
    path, token = token_file(tmp_path)
    store, boxes = tmp_path / "store", tmp_path / "blackbox"
    store.mkdir()
    cast = Cast(tmp_path)
    serve = [
        "serve",
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--store",
        str(store / "hops.sqlite"),
        "--token-file",
        path,
    ]
    secretive = {"SALT": salt, "PYTHONPATH": os.pathsep.join((str(AGENTS), os.environ.get("PYTHONPATH", "")))}
    try:
        collector = cast.start("collector", [sys.executable, "-m", "hopwatch", *serve], piped=True)
        url = collector.stdout.readline().split()[2]
        telling = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}"}
        port, user = free_ports(2)

        def start(name, *arguments):
            environment = {**agent_environment(name, url), **TALKATIVE, **telling, **secretive}
            return cast.start(name, [*launcher(), PROGRAM, name, *arguments], environment)

        worker = start("worker", str(port))
        wait_for_card(cast, "worker", port, time.monotonic() + 120)
        start("user", str(user), f"127.0.0.1:{port}")
        with httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        ) as reader:

            def verdicts():
                rows = reader.get("/api/cascades").raise_for_status().json()["cascades"]
                return {row["verdict"]: row["cascade"] for row in rows}

            def answers():
                paths = ["/api/cascades", "/api/hops", "/api/agents", "/healthz"]
                rows = reader.get("/api/cascades").raise_for_status().json()["cascades"]
                paths += [f"/api/cascades/{row['cascade']}" for row in rows]
                return {path: reader.get(path).raise_for_status().content for path in paths}

            # One is over, the other one hangs in a function that has the secrets in its variables.
            until(lambda: {"settled", "stalled"} <= set(verdicts()))
            seen = {"while it runs": answers(), "kept while it runs": kept(store, boxes)}
            hung = reader.get(f"/api/cascades/{verdicts()['stalled']}").json()
            (execution,) = [hop for hop in hung["hops"] if hop["kind"] == "execution"]
            assert "answer" in execution["waits_on"]["what"]
            assert execution["waits_on"]["function"] == "Worker.charge"
            seen["ps"] = {"all": json.dumps(ps.ask(ps.process(worker.pid), "all", 60)).encode()}
            worker.kill()
            worker.wait(60)
            until(lambda: "broken" in verdicts())
            seen["after its death"] = answers()
            seen["kept after its death"] = kept(store, boxes)
        cast.end()
        seen["kept in the end"] = kept(store, boxes)
        seen["printed"] = {"collector": (tmp_path / "collector.log").read_bytes()}
    finally:
        cast.end()
    # The agents did have the secrets, and what is looked through does have what is kept.
    got = [
        json.loads(line)
        for line in (tmp_path / "worker.log").read_text().splitlines()
        if line.startswith("{")
    ]
    assert [each["text"] for each in got] == [f"text{salt} end", f"text{salt} hang"]
    assert got[0]["headers"]["x-api-key"] == f"header{salt}"
    # httpx quotes the whole URL of what was refused, and the SDK's exception has it.
    assert f"password{salt}@" in (tmp_path / "user.log").read_text()
    assert any(b"HTTP Error 307" in body and b"/nowhere" in body for body in seen["after its death"].values())
    assert any(name.endswith("-wal") and body for name, body in seen["kept while it runs"].items())
    assert any(name.endswith(".box") for name in seen["kept while it runs"])
    for when in ("kept while it runs", "kept in the end"):
        assert any(hung["cascade"].encode() in body for body in seen[when].values())
    for when, found in seen.items():
        for name, body in found.items():
            assert salt.encode() not in body, (when, name)
            assert token.encode() not in body, (when, name)
