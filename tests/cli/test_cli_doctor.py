"""What does `hopwatch doctor` find? In environments that the test makes up, and once for real."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from canned_cascades import environment, free_port, hopwatch

from hopwatch.cli.doctor import examine
from hopwatch.instrumentation import a2a_seams

INSTALLED = {
    "hopwatch": "0.1.0", "a2a-sdk": "1.3.0", "starlette": "1.0", "httpx": "0.28.1", "opentelemetry-distro": "0.66b1",
    "opentelemetry-exporter-otlp-proto-grpc": "1.45", "opentelemetry-exporter-otlp-proto-http": "1.45",
}  # fmt: skip
HEALTHY = {
    "OTEL_SERVICE_NAME": "worker",
    "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false",
}


@pytest.fixture
def look(collector, tmp_path_factory):
    folder = str(
        tmp_path_factory.mktemp("boxes")
    )  # not the one of all tests, where some leave the boxes of what they killed

    def look(*, installed=INSTALLED, listening=True, source=lambda: None, **variables):
        return examine(
            {**HEALTHY, "HOPWATCH_BLACKBOX": folder, **variables},
            collector.url,
            version=installed.get,
            connect=lambda host, port: None if listening else "refused",
            source=source,
        )

    return look


def of(findings, subject):
    return [(each.level, each.text) for each in findings if each.subject == subject]


def grave(findings):
    return [each for each in findings if each.level in ("warning", "problem")]


def test_a_healthy_agent_has_no_problem(look):
    assert grave(look()) == []


def test_a_release_that_lacks_what_is_wrapped_is_told_of_with_what_it_lacks(look, tmp_path):
    sources = a2a_seams.folder()
    for module in a2a_seams.modules():
        path = Path(*module.split(".")).with_suffix(".py")
        there = tmp_path / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(
            (sources / path).read_text().replace("async def _dispatch_notification", "async def _push")
            if (sources / path).exists()
            else ""
        )
    assert of(look(source=lambda: sources), "a2a-sdk's seams") == []
    ((level, text),) = of(
        look(source=lambda: tmp_path, installed={**INSTALLED, "a2a-sdk": "1.4.0"}), "a2a-sdk's seams"
    )
    assert level == "warning"
    assert "a2a-sdk 1.4.0 lacks 1 of the " in text
    assert "pushs" not in text
    assert text.endswith(".BasePushNotificationSender._dispatch_notification")


def test_a_grpcio_that_lacks_what_is_wrapped_is_told_of(look, tmp_path, monkeypatch):
    assert of(look(), "grpcio's seams") == []
    there = a2a_seams.folder("grpc") / "grpc" / "aio"
    (tmp_path / "grpc" / "aio").mkdir(parents=True)
    for name in ("_channel.py", "_call.py"):
        text = (there / name).read_text().replace("class UnaryStreamCall", "class StreamOfAnswers")
        (tmp_path / "grpc" / "aio" / name).write_text(text)
    whole = a2a_seams.folder
    monkeypatch.setattr(
        a2a_seams, "folder", lambda package="a2a": tmp_path if package == "grpc" else whole(package)
    )
    ((level, text),) = of(look(), "grpcio's seams")
    assert level == "warning"
    assert "lacks grpc.aio._call.UnaryStreamCall.__init__, which" in text


def test_a_release_without_a_method_of_its_grpc_handler_is_told_of(look, tmp_path):
    shutil.copytree(a2a_seams.folder() / "a2a", tmp_path / "a2a", ignore=shutil.ignore_patterns("*.pyc"))
    handler = tmp_path / "a2a" / "server" / "request_handlers" / "grpc_handler.py"
    handler.write_text(handler.read_text().replace("async def CancelTask", "async def Cancel"))
    ((level, text),) = of(look(source=lambda: tmp_path), "a2a-sdk's seams")
    assert level == "warning"
    assert text.endswith("a2a.server.request_handlers.grpc_handler.GrpcHandler.CancelTask")


def test_every_problem_and_warning_has_a_remedy(look):
    found = look(
        installed={}, listening=False, OTEL_SERVICE_NAME="", OTEL_SDK_DISABLED="true", OTEL_TRACES_SAMPLER="always_off",
        HOPWATCH_DETAIL="lots", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*", OTEL_PROPAGATORS="b3",
    )  # fmt: skip
    assert len(grave(found)) >= 8
    assert all(each.remedy for each in grave(found))


@pytest.mark.parametrize(
    ("variables", "level", "subject", "says"),
    [
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "flask, hopwatch_a2a"}, "problem", "hopwatch_a2a", "hopwatch_a2a"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}, "problem", "hopwatch_asyncio", "*"),
        ({"OTEL_SDK_DISABLED": "TRUE"}, "problem", "sdk", "OTEL_SDK_DISABLED"),
        ({"OTEL_PROPAGATORS": "b3,baggage"}, "warning", "propagators", "b3,baggage"),
        ({"OTEL_SERVICE_NAME": ""}, "warning", "service name", "unknown_service"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, "warning", "sampler", "unknown"),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "problem", "sampler", "parentbased_always_off"),
        ({"OTEL_TRACES_SAMPLER": "always_off", "HOPWATCH_SAMPLING": "all"}, "ok", "sampler", "HOPWATCH_SAMPLING"),
        ({"HOPWATCH_DETAIL": "everything"}, "problem", "settings", "'everything'"),
        ({"HOPWATCH_CAPACITY": "-3"}, "problem", "settings", "HOPWATCH_CAPACITY"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "problem", "exporter", "none"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "problem", "exporter", "console"),
        ({"OTEL_TRACES_EXPORTER": "otlp,zipkin9"}, "problem", "exporter", "zipkin9"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "problem", "exporter", "http/json"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, "problem", "endpoint", "without a scheme"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, "problem", "endpoint", "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "problem", "endpoint", "no address"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:99999999"}, "problem", "endpoint", "no address"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318"},
            "problem", "endpoint", "/v1/traces",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317"},
            "problem", "endpoint", "port 4317",
        ),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "3"}, "problem", "span limits", "OTEL_ATTRIBUTE_COUNT_LIMIT=3"),
        ({"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "12"}, "problem", "span limits", "cuts"),
        ({"OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "true"}, "note", "a2a-sdk's spans", "32 spans"),
    ],
)  # fmt: skip
def test_what_the_environment_gets_wrong_is_told(look, variables, level, subject, says):
    found = look(**variables)
    assert [text for grade, text in of(found, subject) if grade == level and says in text], of(found, subject)
    assert {each.level for each in found} <= {"ok", "note", level}


@pytest.mark.parametrize(
    ("installed", "level", "subject"),
    [
        ({"a2a-sdk": None}, "warning", "a2a-sdk"),
        ({"a2a-sdk": "0.2.16"}, "problem", "a2a-sdk"),
        ({"a2a-sdk": "0.3.22"}, "ok", "a2a-sdk"),
        ({"a2a-sdk": "1.9.0rc1"}, "note", "a2a-sdk"),
        ({"a2a-sdk": "2.0.0"}, "warning", "a2a-sdk"),
        ({"opentelemetry-distro": None}, "problem", "distro"),
        ({"opentelemetry-exporter-otlp-proto-grpc": None}, "problem", "exporter"),
        ({"uvloop": None}, "note", "uvloop"),
    ],
)
def test_what_is_not_installed_is_told(look, installed, level, subject):
    assert level in [grade for grade, _ in of(look(installed={**INSTALLED, **installed}), subject)]


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, "grpc to http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http/protobuf to http://localhost:4318/v1/traces"),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_http"}, "http/protobuf to http://localhost:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
             "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"},
            "http/protobuf to http://c:4318/v1/traces",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:4317"},
            "grpc to http://b:4317",
        ),
    ],
)  # fmt: skip
def test_the_exporter_is_the_one_that_the_sdk_would_take(look, variables, endpoint):
    (told,) = [text for level, text in of(look(**variables), "exporter") if level == "ok"]
    assert endpoint in told


def test_an_endpoint_where_nobody_listens_is_a_problem(look):
    ((level, text),) = of(look(listening=False), "endpoint")
    assert (level, "localhost:4317" in text) == ("problem", True)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"http_proxy": "http://there:1"}, "http_proxy"),
        ({"ALL_PROXY": "socks5://there:1"}, "ALL_PROXY"),
        ({"http_proxy": "http://there:1", "NO_PROXY": "127.0.0.1,localhost"}, None),
        ({"https_proxy": "http://there:1"}, None),
        ({"http_proxy": "http://there:1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere:4318"}, None),
    ],
)
def test_a_proxy_between_the_exporter_and_this_machine_is_a_problem(look, variables, told):
    found = look(**{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", **variables})
    texts = [text for level, text in of(found, "endpoint") if level == "problem" and "proxy" in text]
    assert [told in text for text in texts] == ([True] if told else [])


def test_an_http_endpoint_that_is_a_hopwatch_collector_is_recognised(look, collector):
    found = look(OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    ((level, text),) = of(found, "endpoint")
    assert (level, "hopwatch collector answers" in text) == ("ok", True)


def test_the_service_name_may_come_from_the_resource(look):
    found = look(OTEL_SERVICE_NAME="", OTEL_RESOURCE_ATTRIBUTES="a=b, service.name=planner,c=d")
    assert of(found, "service name") == [("ok", "this agent is called planner")]


def test_in_a_pipe_it_is_plain_lines_and_the_exit_code_tells(collector):
    url = f"http://127.0.0.1:{free_port()}"
    done = hopwatch("doctor", "--url", url, OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert done.returncode == 1, done.stderr
    told = done.stdout.splitlines()
    assert f"problem: collector: No collector can be reached at {url}" in done.stdout
    assert told[-1].startswith("2 problems")
    assert "\x1b" not in done.stdout
    healthy = hopwatch(
        "doctor", "--json", "--url", collector.url,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", **HEALTHY,
    )  # fmt: skip
    found = json.loads(healthy.stdout)
    assert healthy.returncode == 0, found
    assert found["ok"] is True
    assert set(found["findings"][0]) == {"level", "subject", "text", "remedy"}


def test_it_neither_instruments_nor_imports_what_it_asks_about():
    program = (
        "import sys; from hopwatch.cli.doctor import examine; examine({}, 'http://127.0.0.1:9'); "
        "print([each for each in ('a2a', 'fastapi', 'grpc', 'uvloop', 'starlette', 'opentelemetry.sdk', "
        "'hopwatch.instrumentation.a2a', 'hopwatch.instrumentation.asyncio') if each in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
