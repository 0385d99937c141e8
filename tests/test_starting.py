"""Does `hopwatch.instrument()` say what is wrong, leave what is there, and set up what is not?"""

import importlib.metadata
import os
import subprocess
import sys

import pytest

import hopwatch
from hopwatch.starting import INSTRUMENTORS

pytestmark = pytest.mark.timeout(300)


def in_a_new_process(source, **environment):
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "HOPWATCH_BLACKBOX" or not key.startswith(("HOPWATCH", "OTEL_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_instruments_with_what_the_launcher_finds_by_its_entry_points():
    points = importlib.metadata.entry_points(group="opentelemetry_instrumentor")
    assert {each.name: each.value for each in points if each.value.startswith("hopwatch.")} == INSTRUMENTORS


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318/v1/traces", "https://hops.example/in/v1/logs/"])
def test_an_address_of_one_signal_is_refused_for_each_has_its_own(url):
    with pytest.raises(ValueError, match="ends before /v1"):
        hopwatch.instrument(url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:4318", "ftp://127.0.0.1", "http://", "http://a b"])
def test_a_url_that_is_none_is_refused_with_what_it_should_be(url):
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:4318"):
        hopwatch.instrument(url)


@pytest.mark.parametrize("name", ["", "  ", 4])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="at least one character"):
        hopwatch.instrument(service_name=name)


def test_a_second_call_changes_nothing_and_nobody_is_warned():
    said = in_a_new_process("""
import asyncio, logging
logging.basicConfig()
import hopwatch
hopwatch.instrument()
made = asyncio.BaseEventLoop.create_task
hopwatch.instrument()
hopwatch.instrument()
assert asyncio.BaseEventLoop.create_task is made
""")
    assert said == ""


@pytest.mark.parametrize(
    ("disabled", "there"),
    [
        ("hopwatch_asyncio", [False, True]),
        ("hopwatch_a2a, hopwatch_asyncio", [False, False]),
        ("*", [False, False]),
    ],
)
def test_what_the_environment_disables_is_left_out(disabled, there):
    said = in_a_new_process(
        """
import hopwatch
hopwatch.instrument()
from hopwatch.instrumentation.a2a import A2AInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
print([each().is_instrumented_by_opentelemetry for each in (AsyncioInstrumentor, A2AInstrumentor)])
""",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled,
    )
    assert said == f"{there}\n"


def test_an_sdk_that_is_there_is_left_as_it_is_and_the_log_says_so():
    said = in_a_new_process("""
import logging
logging.basicConfig()
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
theirs = TracerProvider()
trace.set_tracer_provider(theirs)
import hopwatch
hopwatch.instrument("http://127.0.0.1:9")
assert trace.get_tracer_provider() is theirs
""")
    assert said == (
        "WARNING:hopwatch:hopwatch: this program has an OpenTelemetry SDK already, so its records go where that sends them, "
        "and not to http://127.0.0.1:9.\n"
    )


@pytest.mark.parametrize(
    ("given", "environment", "name"),
    [
        ("", {}, "python"),
        ("", {"OTEL_SERVICE_NAME": "told"}, "told"),
        ("", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=attribute"}, "attribute"),
        (", service_name='given'", {"OTEL_SERVICE_NAME": "told"}, "given"),
    ],
)
def test_an_agent_is_called_what_the_program_or_the_environment_says_or_after_its_script(
    given, environment, name
):
    said = in_a_new_process(
        f"""
import hopwatch
hopwatch.instrument("http://127.0.0.1:9"{given})
from opentelemetry import trace
provider = trace.get_tracer_provider()
name = provider.resource.attributes["service.name"]
print("python" if name.startswith("python") else name)
import os, sys
sys.stdout.flush()
os._exit(0)  # nobody takes its telemetry
""",
        **environment,
    )
    assert said == f"{name}\n"


def test_a_token_s_file_that_cannot_be_used_is_named(tmp_path):
    said = in_a_new_process(
        """
import hopwatch
try:
    hopwatch.instrument("http://127.0.0.1:9")
except ValueError as error:
    print(error)
from opentelemetry import trace
assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
""",
        HOPWATCH_TOKEN_FILE=str(tmp_path / "absent"),
    )
    assert "absent" in said
    assert "cannot be read" in said


with_acp = pytest.mark.skipif(
    not [*importlib.metadata.distributions(name="agent-client-protocol")],
    reason="agent-client-protocol is not installed; ci: may be skipped",
)
CASCADE = """
import asyncio, logging
logging.basicConfig(format="%(message)s")
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
import hopwatch
{before}

async def main():
    async with hopwatch.cascade("ask"):
        work = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
    await hopwatch.drain(0)
    work.cancel()
    await asyncio.wait([work])
    for span in exporter.get_finished_spans():
        print(span.name, "lacks", span.attributes.get("hopwatch.hop.uncounted", "nothing"))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("before", "disabled", "lacking"),
    [
        ("", "", "hopwatch_asyncio"),
        ("import a2a.types", "", "hopwatch_asyncio,hopwatch_a2a"),
        ("hopwatch.instrument()", "hopwatch_asyncio", "hopwatch_asyncio"),
        ("hopwatch.instrument(); import a2a.client", "hopwatch_acp, hopwatch_a2a", "hopwatch_a2a"),
        pytest.param(
            "hopwatch.instrument(); import a2a.client, acp",
            "hopwatch_acp, hopwatch_a2a",
            "hopwatch_a2a,hopwatch_acp",
            marks=with_acp,
        ),
    ],
)
def test_a_hop_tells_which_instrumentations_are_not_in_place_and_the_log_says_what_to_do(
    before, disabled, lacking
):
    said = in_a_new_process(CASCADE.format(before=before), OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled)
    assert f"ask lacks {lacking}\n" in said
    for use in ("cascade", "drain"):
        named = lacking.replace(",", ", ")
        assert (
            f"hopwatch: hopwatch.{use} is used where not in place: {named}. What that counts is not in the account."
            in said
        )


def test_where_all_is_in_place_nothing_is_lacking():
    said = in_a_new_process(CASCADE.format(before="hopwatch.instrument(); import a2a.client"))
    assert "ask lacks nothing\n" in said
    assert "not in place" not in said
