"""How do the dashboards look? Makes their JSON: python dashboards/generate.py, or with --check only compares.

Needs the extra `dashboards` (Python 3.11 or later). What it makes is committed, so nobody else needs that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import common, table, tempo, text
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import text as text_models
from parts import (
    PER_SECOND,
    TEMPO,
    Page,
    agents,
    alerts_on,
    bars,
    curves,
    number,
    of_agent,
    on,
    rows,
    source,
    traces_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parts import Panel

HERE = Path(__file__).parent
COLOURS = {
    "settled": "green",
    "in_flight": "blue",
    "waiting": "super-light-blue",
    "stalled": "orange",
    "stranded": "dark-orange",
    "broken": "red",
    "silent": "purple",
    "unknown": "yellow",
}
MEANINGS = {
    "in_flight": "Something moves, or a record is on its way.",
    "stalled": "Hops are open, and none of them can move by itself any more.",
    "broken": "A hop was abandoned in the last hour: it will never finish.",
    "stranded": "Nothing is open, yet an A2A task is in no terminal state.",
    "silent": "A hop is open in a process that has not been heard of for 16 s.",
    "unknown": "The account has a hole: it cannot be said whether it is over.",
    "waiting": "An A2A task waits for somebody's message or authentication.",
    "settled": "Over, and every promise was seen kept; of the last hour.",
}


# Pages ---------------------------------------------------------------------------------------------------------


def cascades() -> Page:
    """What is in flight, for how long, where it stands, and what never finished."""
    page = Page(
        "hopwatch-cascades",
        "hopwatch / Cascades",
        "What is in flight, for how long, where it stands, and what never finished. A cascade counts while a hop of it is open, and for an hour after its last record.",
    )
    source(page)
    agents(page)
    traces_in(page)
    alerts_on(page)
    page.row("Now")
    for verdict in ("in_flight", "stalled", "broken", "stranded", "silent", "unknown", "waiting", "settled"):
        page.add(
            number(
                verdict.replace("_", " ").capitalize(),
                MEANINGS[verdict],
                f"sum(hopwatch_cascades{on(verdict=verdict)})",
                bad_from=None if verdict in ("in_flight", "waiting", "settled") else 1,
                colour=COLOURS[verdict],
            ),
            3,
            4,
        )
    page.add(
        number(
            "Oldest open cascade",
            "How long ago the oldest cascade with an open hop began.",
            f"max(hopwatch_cascade_age_seconds{on()})",
            unit="s",
            bad_from=900,
            colour="orange",
        ),
        6,
        4,
    )
    page.add(
        number(
            "Oldest open hop",
            "How long ago the oldest open hop of the chosen agents began.",
            f"max(hopwatch_open_hop_age_seconds{of_agent()})",
            unit="s",
            bad_from=900,
            colour="orange",
        ),
        6,
        4,
    )
    page.add(
        rows(
            "Alerts that fire",
            "Their descriptions and runbooks are with Alertmanager and in docs/runbooks.",
            'max by (alertname, severity, agent) (ALERTS{job="hopwatch", alertstate="firing"})',
            hide=("Value",),
        ).sort_by([common.TableSortByFieldState().display_name("severity")]),
        12,
        4,
    )
    page.row("In flight, and for how long")
    page.add(
        curves(
            "Cascades by verdict",
            "Those that are open, and those of which a record came in the last hour. Settled ones are left out: they would hide the others.",
            (f"sum by (verdict) (hopwatch_cascades{on(verdict='!=settled')})", "{{verdict}}"),
            stacked=True,
            colours=COLOURS,
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Age of the oldest open cascade, by verdict",
            "A line that climbs and does not fall is one cascade that does not end.",
            (f"max by (verdict) (hopwatch_cascade_age_seconds{on()})", "{{verdict}}"),
            unit="s",
            colours=COLOURS,
        ),
        12,
        8,
    )
    page.row("Where it stands")
    page.add(
        curves(
            "Open hops by agent and kind",
            "As many as the store holds at each scrape.",
            (f"sum by (agent, kind) (hopwatch_open_hops{of_agent()}) > 0", "{{agent}} {{kind}}"),
            stacked=True,
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Age of the oldest open hop, by agent and kind",
            "How long ago it began.",
            (f"max by (agent, kind) (hopwatch_open_hop_age_seconds{of_agent()}) > 0", "{{agent}} {{kind}}"),
            unit="s",
        ),
        12,
        8,
    )
    page.add(
        rows(
            "What the frontier waits on",
            "The open hops with no open hop below them. With moves=false only other work can end the wait.",
            f"sum by (agent, on, moves) (hopwatch_waiting_hops{of_agent()})",
        ),
        24,
        7,
    )
    page.row("What never finished")
    page.add(
        curves(
            "Abandoned hops by cause",
            "Of the last hour: killed with their process, pending when it ended, or collected because nothing kept a reference.",
            (f"sum by (cause) (hopwatch_abandoned_hops{of_agent()})", "{{cause}}"),
            stacked=True,
        ),
        8,
        7,
    )
    page.add(
        curves(
            "Pending when their process ended, by agent",
            "Of processes that ended in the last hour.",
            (f"sum by (agent) (hopwatch_pending_at_shutdown{of_agent()})", "{{agent}}"),
            stacked=True,
        ),
        8,
        7,
    )
    page.add(
        curves(
            "Deadlocks and cancellations",
            "Deadlocks that hold up an open hop; tasks that finished though they were asked to cancel, or were pending a second later.",
            (f"sum(hopwatch_open_deadlocks{of_agent()})", "deadlocks"),
            (f"sum(hopwatch_swallowed_cancellations{of_agent()})", "swallowed cancellations"),
            (f"sum(hopwatch_outlived_cancellations{of_agent()})", "outlived cancellations"),
        ),
        8,
        7,
    )
    page.closed_row("Their ids (needs Tempo)", (open_traces(), 24, 9))
    return page


def open_traces() -> Panel:
    """A list of traces that have markers of open hops, each a link to its own page."""
    return (
        table.Panel()
        .title("Cascades that had a hop open for longer than 0.25 s")
        .description(
            "Traces in Tempo with a marker of hopwatch's. That a marker is there does not say that the hop is open still. Prometheus has no ids of cascades: they would be series without end."
        )
        .datasource(TEMPO)
        .with_target(
            tempo.Dataquery()
            .datasource(TEMPO)
            .ref_id("A")
            .query_type("traceql")
            .query('{ span.hopwatch.record = "open" }')
            .limit(50)
            .table_type(tempo.tempo.SearchTableType.TRACES)
        )
        .override_by_name(
            "traceID",
            [
                models.DynamicConfigValue(
                    "links",
                    [
                        {
                            "title": "This cascade",
                            "url": "/d/hopwatch-cascade?var-cascade=${__value.raw}&${tempo:queryparam}&${datasource:queryparam}",
                        }
                    ],
                )
            ],
        )
    )


def processes() -> Page:
    """Who lives, who is silent, and what each of them has open."""
    page = Page(
        "hopwatch-agents",
        "hopwatch / Agents",
        "Who lives, who is silent, and what each of them has open. A process counts while a hop of it is open, and for an hour after it was heard of.",
    )
    source(page)
    agents(page)
    alerts_on(page)
    page.row("Now")
    for state, meaning, bad in (
        ("alive", "Processes heard of in the last 16 s.", None),
        ("idle", "Processes that say nothing and have nothing open: all is well.", None),
        ("silent", "Processes with open hops that have not been heard of for 16 s.", 1),
        ("ended", "Processes that told of their end in the last hour.", None),
    ):
        page.add(
            number(
                state.capitalize(),
                meaning,
                f"sum(hopwatch_processes{of_agent(state=state)})",
                bad_from=bad,
                colour="purple",
            ),
            4,
            4,
        )
    page.add(
        number(
            "Longest silence",
            "Of a process with open hops: how long nothing has come from it.",
            f"max(hopwatch_process_silence_seconds{of_agent()})",
            unit="s",
            bad_from=16,
            colour="purple",
        ),
        4,
        4,
    )
    page.add(
        number(
            "Dropped entries",
            "Entries that did not fit into ledgers: their cascades are unknown.",
            f"sum(hopwatch_dropped_entries{of_agent()})",
            bad_from=1,
        ),
        4,
        4,
    )
    page.row("Processes")
    page.add(
        curves(
            "Processes by state",
            "By what was last heard of them.",
            (f"sum by (state) (hopwatch_processes{of_agent()})", "{{state}}"),
            stacked=True,
            colours={"alive": "green", "idle": "blue", "silent": "purple", "ended": "text"},
        ),
        12,
        8,
    )
    page.add(
        rows(
            "Processes by agent and state",
            "Only what is not zero.",
            f"sum by (agent, state) (hopwatch_processes{of_agent()}) > 0",
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Silence by agent",
            "How long nothing has come from the quietest process with open hops. Beyond 16 s it is called silent.",
            (f"max by (agent) (hopwatch_process_silence_seconds{of_agent()})", "{{agent}}"),
            unit="s",
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Deadlocks by agent",
            "Those that hold up an open hop.",
            (f"sum by (agent) (hopwatch_open_deadlocks{of_agent()})", "{{agent}}"),
        ),
        12,
        8,
    )
    page.row("Their work")
    page.add(
        bars(
            "Open hops by agent",
            "As many as the store holds.",
            f"sum by (agent) (hopwatch_open_hops{of_agent()})",
            "{{agent}}",
        ),
        8,
        8,
    )
    page.add(
        bars(
            "Oldest open hop by agent",
            "How long ago it began.",
            f"max by (agent) (hopwatch_open_hop_age_seconds{of_agent()})",
            "{{agent}}",
            unit="s",
        ),
        8,
        8,
    )
    page.add(
        bars(
            "Abandoned hops by agent",
            "Of the last hour.",
            f"sum by (agent) (hopwatch_abandoned_hops{of_agent()})",
            "{{agent}}",
        ),
        8,
        8,
    )
    page.add(
        rows(
            "Pending when the process ended, by kind",
            "Of processes that ended in the last hour. The lines that made it are in the process's report, and in the reasons of its cascades.",
            f"sum by (agent, kind) (hopwatch_pending_at_shutdown{of_agent()}) > 0",
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Cancellations that were swallowed or outlived, by agent",
            "Tasks that finished though they were asked to cancel; hops that were pending a second after.",
            (f"sum by (agent) (hopwatch_swallowed_cancellations{of_agent()})", "{{agent}} swallowed"),
            (f"sum by (agent) (hopwatch_outlived_cancellations{of_agent()})", "{{agent}} outlived"),
        ),
        12,
        8,
    )
    return page


def cascade() -> Page:
    """One cascade by its id, as far as Grafana can show it."""
    page = Page(
        "hopwatch-cascade",
        "hopwatch / One cascade",
        "One cascade by its id, which is its trace id. Its trace comes from Tempo. Its verdict is with the collector alone.",
    )
    page.built.with_variable(
        build.TextBoxVariable("cascade")
        .label("Cascade")
        .description("32 hex digits: the trace id")
        .default_value("")
    )
    page.built.with_variable(
        build.TextBoxVariable("collector")
        .label("Collector")
        .description("Where your browser reaches the collector")
        .default_value("http://127.0.0.1:4318")
    )
    traces_in(page)
    page.add(
        text.Panel()
        .title("Is it over?")
        .description("Where the verdict is to be had.")
        .mode(text_models.TextMode.MARKDOWN)
        .content(
            "Whether this cascade is over, and what it waits on, the **collector** says:\n\n"
            "- [the live page](${collector}/#/cascade/${cascade}), and [as JSON](${collector}/api/cascades/${cascade})\n"
            "- `hopwatch show ${cascade} --url ${collector}`\n"
            "- `hopwatch wait ${cascade} --url ${collector}`\n\n"
            "Below is what **Tempo** has of it. A hop that has not ended has no span of its own there, only markers (`hopwatch.open`), so a trace "
            "that looks complete need not be. That is why the verdict is not drawn from it."
        ),
        24,
        6,
    )
    page.add(
        build.Panel()
        .type("traces")
        .title("The trace")
        .description("All spans of the cascade that have ended, by Tempo.")
        .datasource(TEMPO)
        .with_target(
            tempo.Dataquery().datasource(TEMPO).ref_id("A").query_type("traceql").query("${cascade}")
        ),
        24,
        14,
    )
    for title, description, record in (
        (
            "Markers: what was open, and what it waited on",
            "Each says that the hop which is its parent was open at that moment. One that has an end in the trace above has ended since.",
            "open",
        ),
        (
            "Found dead",
            "Hops that were open in a process when it was killed, told of by somebody else.",
            "abandoned",
        ),
    ):
        page.add(
            table.Panel()
            .title(title)
            .description(description)
            .datasource(TEMPO)
            .with_target(
                tempo.Dataquery()
                .datasource(TEMPO)
                .ref_id("A")
                .query_type("traceql")
                .query(
                    f'{{ trace:id = "${{cascade}}" && span.hopwatch.record = "{record}" }}'
                    " | select(span.hopwatch.hop.kind, span.hopwatch.hop.name, span.hopwatch.hop.waits, span.hopwatch.hop.reason)"
                )
                .limit(200)
                .spss(200)
                .table_type(tempo.tempo.SearchTableType.SPANS)
            ),
            12,
            10,
        )
    return page


def collector() -> Page:
    """How the collector itself does."""
    page = Page(
        "hopwatch-collector",
        "hopwatch / Collector",
        "How the collector itself does: what comes in, what is refused, how late, and what it costs.",
    )
    source(page)
    alerts_on(page)
    page.row("Now")
    for title, description, expression, unit, bad in (
        ("Up", "Collectors that answer Prometheus.", f"sum(up{on(job='hopwatch')})", "short", None),
        ("Store", "Bytes that it takes.", f"sum(hopwatch_store_bytes{on()})", "bytes", None),
        ("Cascades kept", "All that the store holds.", f"sum(hopwatch_store_cascades{on()})", "short", None),
        (
            "Requests waiting",
            "To be written. At 256 senders are asked to come back.",
            f"max(hopwatch_store_pending_requests{on()})",
            "short",
            128.0,
        ),
        (
            "Rejected records",
            "In the last hour. Their cascades can not become settled.",
            f"sum(increase(hopwatch_records_rejected_total{on()}[1h]))",
            "short",
            1.0,
        ),
        (
            "Cascades unread",
            "Those that the gauges leave out, for they are too many for one scrape.",
            f"sum(hopwatch_cascades_unread{on()})",
            "short",
            1.0,
        ),
    ):
        page.add(number(title, description, expression, unit=unit, bad_from=bad), 4, 4)
    page.row("What comes in")
    page.add(
        curves(
            "Records",
            "What was taken, by what it tells of.",
            (
                f"sum by (record) (rate(hopwatch_records_received_total{on()}[$__rate_interval]))",
                "{{record}}",
            ),
            unit=PER_SECOND,
            stacked=True,
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Refused, and not hopwatch's",
            "Records that were refused, and spans of others that were forgotten.",
            (f"sum(rate(hopwatch_records_rejected_total{on()}[$__rate_interval]))", "rejected records"),
            (f"sum(rate(hopwatch_spans_ignored_total{on()}[$__rate_interval]))", "spans of others"),
            unit=PER_SECOND,
        ),
        12,
        8,
    )
    page.add(
        curves(
            "Requests",
            "By protocol, signal and what became of them. Busy ones are sent again.",
            (
                f"sum by (protocol, signal, result) (rate(hopwatch_otlp_requests_total{on()}[$__rate_interval])) > 0",
                "{{protocol}} {{signal}} {{result}}",
            ),
            unit="reqps",
        ),
        12,
        8,
    )
    lag = f"rate(hopwatch_record_lag_seconds_bucket{on()}[$__rate_interval])"
    page.add(
        curves(
            "Lag",
            "From when a heartbeat or a marker was made to its arrival. The difference of the clocks is in it.",
            (f"histogram_quantile(0.5, sum by (le) ({lag}))", "median"),
            (f"histogram_quantile(0.95, sum by (le) ({lag}))", "95 %"),
            unit="s",
        ),
        12,
        8,
    )
    page.row("What it costs")
    page.add(
        curves(
            "Processor",
            "Of one core.",
            (f"rate(process_cpu_seconds_total{on(job='hopwatch')}[$__rate_interval])", "{{instance}}"),
            unit="percentunit",
        ),
        8,
        7,
    )
    page.add(
        curves(
            "Memory",
            "Resident.",
            (f"process_resident_memory_bytes{on(job='hopwatch')}", "{{instance}}"),
            unit="bytes",
        ),
        8,
        7,
    )
    page.add(
        curves(
            "Reading the gauges",
            "How long the store was read for the last answer to Prometheus.",
            (f"hopwatch_measured_seconds{on()}", "{{instance}}"),
            unit="s",
        ),
        8,
        7,
    )
    page.add(
        rows(
            "Versions",
            "Of the collectors.",
            f"hopwatch_collector_info{on()}",
            hide=("Value", "__name__", "job"),
        ).sort_by([common.TableSortByFieldState().display_name("instance")]),
        24,
        4,
    )
    return page


def polished(made: dict[str, Any]) -> dict[str, Any]:
    """A dashboard as the types of Grafana 13 want it and Grafana 11 takes it; `typecheck` looks whether it is."""
    for variable in made["templating"]["list"]:
        # The SDK writes them for each kind; only variables of intervals have them.
        for name in ("auto", "auto_count", "auto_min"):
            variable.pop(name, None)
    for panel in [*made["panels"], *(each for row in made["panels"] for each in row.get("panels", ()))]:
        if panel["type"] == "table":
            panel["options"].pop("footer", None)  # it is hidden by default, and Grafana 12 has moved it
    for each in made.get("annotations", {}).get("list", ()):
        # Grafana 12 and later read the query from the target; 11 reads it from beside that.
        if "expr" in each:
            each["target"] = {"refId": "Anno", "expr": each["expr"], "interval": each["step"]}
    return made


def generated() -> Iterator[tuple[Path, str]]:
    """Each file and what belongs into it."""
    for page in (cascades(), processes(), cascade(), collector()):
        built = page.built.build()
        # By default the SDK hides these behind a menu that Grafana has from 12 on only.
        for each in (*(built.links or ()), *((built.annotations and built.annotations.list_val) or ())):
            each.placement = None
        made = polished(json.loads(JSONEncoder().encode(built)))
        yield HERE / f"{page.uid}.json", json.dumps(made, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the files; with --check only say which of them are not as they would be written."""
    stale = [path for path, made in generated() if not path.exists() or path.read_text("utf-8") != made]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is not what dashboards/generate.py makes")
        return 1 if stale else 0
    for path, made in generated():
        path.write_text(made, "utf-8")
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
