"""Does an agent's own metric lead to a cascade? Through the SDK's exemplars, in a process of its own."""

import json
import subprocess
import sys

PROGRAM = """
import json, time
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
trace.set_tracer_provider(TracerProvider())

import hopwatch

with hopwatch.cascade("stocktaking") as cascade:
    pass


def exemplars():
    found = reader.get_metrics_data()
    return [
        (f"{each.trace_id:032x}", point.attributes["hopwatch.hop.kind"], point.count)
        for resource in (found.resource_metrics if found else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "hopwatch.hop.duration"
        for point in metric.data.data_points
        for each in point.exemplars
    ]


until = time.monotonic() + 60
while not (said := exemplars()) and time.monotonic() < until:
    time.sleep(0.05)
print(json.dumps([cascade.id, said]))
"""


def test_the_duration_of_a_hop_carries_its_cascade_as_an_exemplar():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    cascade, said = json.loads(done.stdout)
    assert said == [[cascade, "task", 1]]
