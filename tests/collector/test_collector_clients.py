"""Does everything that asks a collector, or tells it something, bring the token that it wants, there and nowhere else?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from guarded import certificate, token_file
from telling import PROTOBUF, collector, end, protobuf, trace

from hopwatch.cli.run import set_defaults
from hopwatch.tokens import TokenError

pytestmark = [pytest.mark.processes, pytest.mark.timeout(480)]

HOP = "1111111111111111"
QUIET = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
DISABLED = {
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi,grpc_client,grpc_server,grpc_aio_client,grpc_aio_server"
}
PROGRAM = "import hopwatch\nwith hopwatch.cascade('nightly') as cascade:\n    print(cascade.id)\n"


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("token"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def running(tmp_path_factory, token):
    with collector(tmp_path_factory.mktemp("store") / "hops.sqlite", "--token-file", token[0]) as it:
        it.url = f"http://127.0.0.1:{it.port}"
        yield it


def environment(**more):
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "HOPWATCH_BLACKBOX" or not key.startswith(("HOPWATCH_", "OTEL_"))
    }
    return {**kept, **more}


def hopwatch(*words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "hopwatch", *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def told(running, token):
    """A cascade that the collector knows and that is over."""
    cascade = trace()
    headers = {"content-type": PROTOBUF, "authorization": f"Bearer {token[1]}"}
    status, _, _ = running.request("POST", "/v1/traces", protobuf(end(cascade, HOP)), headers)
    assert status == 200
    return cascade


def test_readers_bring_it_by_option_or_variable(running, token):
    cascade = told(running, token)
    for words in (("ls", "--json"), ("show", cascade, "--json"), ("wait", cascade, "--json")):
        for options, variables in (
            (("--token-file", token[0]), {}),
            ((), {"HOPWATCH_TOKEN_FILE": token[0]}),
        ):
            done = hopwatch(*words, "--url", running.url, *options, **variables)
            assert done.returncode == 0, done.stderr
            assert cascade in done.stdout
            assert token[1] not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [("ls",), ("show", "ab"), ("wait", "ab", "--timeout", "30")])
def test_readers_without_it_or_with_another_one_are_told_what_to_do(running, other, words):
    for options, says in (
        ((), "wants a token"),
        (("--token-file", other[0]), "takes another token than this one"),
    ):
        done = hopwatch(*words, "--url", running.url, *options)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert says in line
        assert "--token-file or HOPWATCH_TOKEN_FILE" in line


def test_a_token_s_file_that_cannot_be_used_is_a_wrong_value(running, tmp_path):
    path, word = token_file(tmp_path, mode=0o644)
    for words, variables in (
        (("ls", "--token-file", path), {}),
        (("ls",), {"HOPWATCH_TOKEN_FILE": path}),
        (("run", "--token-file", path, "--", "true"), {}),
        (("run", "--", "true"), {"HOPWATCH_TOKEN_FILE": path}),
    ):
        done = hopwatch(*words, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert "chmod 600" in done.stderr
        assert word not in done.stderr


def test_a_certificate_that_signs_itself_is_taken_where_its_file_is_named(tmp_path, token):
    pair = certificate(tmp_path)
    options = ("--tls-cert", pair.cert, "--tls-key", pair.key, "--token-file", token[0])
    with collector(tmp_path / "hops.sqlite", *options) as it:
        words = ("ls", "--json", "--url", f"https://localhost:{it.port}", "--token-file", token[0])
        done = hopwatch(*words, SSL_CERT_FILE=pair.cert)
        assert json.loads(done.stdout) == {"cascades": []}
        done = hopwatch(*words, SSL_CERT_FILE="", SSL_CERT_DIR="")
        assert done.returncode == 1
        assert "cannot be trusted" in done.stderr
        assert "SSL_CERT_FILE" in done.stderr
        done = hopwatch(*words, SSL_CERT_FILE=str(tmp_path / "none"))
        assert done.returncode == 1
        assert "cannot be read" in done.stderr


def test_an_agent_that_is_run_brings_it(running, token):
    for words, variables in (
        (("--url", running.url, "--token-file", token[0]), {}),
        ((), {"HOPWATCH_URL": running.url, "HOPWATCH_TOKEN_FILE": token[0]}),
    ):
        done = hopwatch("run", *words, "--", sys.executable, "-c", PROGRAM, **QUIET, **DISABLED, **variables)
        assert done.returncode == 0, done.stderr
        waited = hopwatch("wait", done.stdout.strip(), "--url", running.url, "--token-file", token[0])
        assert waited.returncode == 0, waited.stdout
    done = hopwatch("run", "--url", running.url, "--", sys.executable, "-c", PROGRAM, **QUIET, **DISABLED)
    waited = hopwatch(
        "wait", done.stdout.strip(), "--timeout", "0", "--url", running.url, "--token-file", token[0]
    )
    assert waited.returncode == 16


def test_only_an_option_gives_the_token_to_an_endpoint_that_somebody_else_named(token):
    elsewhere = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://elsewhere.example:4318",
        "HOPWATCH_TOKEN_FILE": token[0],
    }
    said = dict(elsewhere)
    set_defaults(said, ["python", "agent.py"])
    assert token[1] not in str(said)
    set_defaults(said, ["python", "agent.py"], token=token[1])
    assert said["OTEL_EXPORTER_OTLP_HEADERS"] == f"authorization=Bearer%20{token[1]}"
    said = dict(elsewhere)
    set_defaults(said, ["python", "agent.py"], "http://127.0.0.1:4318")  # --url replaces it
    assert token[1] in said["OTEL_EXPORTER_OTLP_HEADERS"]
    with pytest.raises(TokenError):
        set_defaults({"HOPWATCH_TOKEN_FILE": "/nowhere"}, ["python", "agent.py"])


def test_doctor_tells_whether_the_exporter_would_bring_it(running, token, other):
    def endpoint(*words, **variables):
        done = hopwatch(
            "doctor", "--json", "--url", running.url, *words,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_ENDPOINT=running.url, **variables,
        )  # fmt: skip
        assert token[1] not in done.stdout + done.stderr
        found = {each["subject"]: each for each in json.loads(done.stdout)["findings"]}
        return found["collector"]["level"], found["endpoint"]

    ask = ("--token-file", token[0])
    sent = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token[1]}"}
    assert endpoint(*ask, **sent)[0] == "ok"
    assert endpoint(*ask, **sent)[1]["level"] == "ok"
    level, found = endpoint(*ask)
    assert (level, found["level"]) == ("ok", "problem")
    assert "wants its token, and the exporter sends none" in found["text"]
    assert "--token-file" in found["remedy"]
    assert endpoint(**sent)[0] == "problem"
    wrong = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{other[1]}"}
    assert "sends another one" in endpoint(*ask, **wrong)[1]["text"]
    grpc = {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{running.grpc_port}",
    }
    assert endpoint(*ask, **grpc)[1]["level"] == "problem"
    assert endpoint(*ask, **grpc, **sent)[1]["level"] == "ok"


def test_what_a_dead_process_left_stays_until_the_token_is_brought(running, token, tmp_path):
    boxes = tmp_path / "boxes"
    variables = {"HOPWATCH_BLACKBOX": str(boxes), "OTEL_TRACES_EXPORTER": "none", "PYTHONUNBUFFERED": "1"}
    dies = PROGRAM + "    import os\n    os.kill(os.getpid(), 9)\n"
    died = hopwatch("run", "--", sys.executable, "-c", dies, **QUIET, **DISABLED, **variables)
    assert died.returncode == -signal.SIGKILL, died.stderr
    reap = ("reap", "--folder", str(boxes), "--json", "--url", running.url)
    done = hopwatch(*reap)
    assert done.returncode == 1
    assert "wants its token" in json.loads(done.stdout)["undelivered"][0]["problem"]
    done = hopwatch(*reap, "--token-file", token[0])
    assert done.returncode == 0, done.stderr
    (box,) = json.loads(done.stdout)["delivered"]
    assert box["hops"][0]["cascade"] == died.stdout.strip()
    waited = hopwatch("wait", died.stdout.strip(), "--url", running.url, "--token-file", token[0])
    assert waited.returncode == 14


def test_the_fixture_brings_it_and_gives_it_to_children(running, token, tmp_path):
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(f"""
            import asyncio, os, subprocess, sys

            def test_over(cascade):
                said = cascade.environment("child")
                assert said["HOPWATCH_TOKEN_FILE"] == {token[0]!r}
                command = [sys.executable, "-m", "hopwatch", "run", "--", sys.executable, "-c", {PROGRAM!r}]
                done = subprocess.run(command, env={{**os.environ, **said}}, capture_output=True, text=True, timeout=240)
                assert done.returncode == 0, done.stderr
                wait = [sys.executable, "-m", "hopwatch", "wait", done.stdout.strip()]
                assert subprocess.run(wait, env={{**os.environ, **said}}, timeout=240).returncode == 0
                assert asyncio.run(cascade.settled(timeout=60)).verdict == "settled"
        """)
    )

    def run(**variables):
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider",
             "-p", "hopwatch.pytest_plugin", "-p", "no:hopwatch", "--rootdir", str(tmp_path), str(tmp_path)],
            env=environment(HOPWATCH_URL=running.url, **DISABLED, **variables),
            cwd=tmp_path, capture_output=True, text=True, timeout=420, check=False,
        )  # fmt: skip

    done = run(HOPWATCH_TOKEN_FILE=token[0])
    assert done.returncode == 0, done.stdout
    done = run(HOPWATCH_TOKEN_FILE="/nowhere")
    assert done.returncode == 1
    assert "HOPWATCH_TOKEN_FILE: the token file '/nowhere' cannot be read" in done.stdout
