"""Are the dashboards what their generator makes, whole, and about metrics that there are?"""

import re
import subprocess
import sys

import pytest

from dashboard_expressions import FOLDER, dashboards, filled_in, of_panels, panels, rules
from hopwatch import attributes as names

COUNTERS = {
    names.COLLECTOR_RECORDS,
    names.COLLECTOR_REJECTED,
    names.COLLECTOR_IGNORED,
    names.COLLECTOR_REQUESTS,
}
KNOWN = (
    {value for name, value in vars(names).items() if name.startswith("COLLECTOR_")}
    - COUNTERS
    - {names.COLLECTOR_LAG, names.COLLECTOR_INFO}
    | {f"{name}_total" for name in COUNTERS}
    | {f"{names.COLLECTOR_LAG}_bucket", f"{names.COLLECTOR_INFO}_info"}
    | {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
)
ALL = sorted(dashboards())


def test_there_are_four_pages_with_ids_of_their_own():
    assert {each["uid"]: each["title"] for each in dashboards().values()} == {
        "hopwatch-cascades": "hopwatch / Cascades",
        "hopwatch-agents": "hopwatch / Agents",
        "hopwatch-cascade": "hopwatch / One cascade",
        "hopwatch-collector": "hopwatch / Collector",
    }


def test_generating_them_again_changes_nothing():
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11 (ci: may be skipped)")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ALL)
def test_every_panel_says_what_it_shows_in_which_unit_from_where_and_overlaps_no_other(name):
    dashboard = dashboards()[name]
    taken = set()
    inner = [panel["id"] for panel in panels(dashboard)]
    assert len(set(inner)) == len(inner)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"], panel["title"]
        if panel["type"] == "text":
            continue
        variable = panel["datasource"]["uid"]
        assert variable in ("${datasource}", "${tempo}")
        assert any(f"${{{each['name']}}}" == variable for each in dashboard["templating"]["list"])
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)
        if panel["datasource"]["type"] == "prometheus":
            assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("name", ALL)
def test_each_page_leads_to_the_others_and_marks_alerts(name):
    dashboard = dashboards()[name]
    assert [(each["type"], each["tags"]) for each in dashboard["links"]] == [("dashboards", ["hopwatch"])]
    assert "hopwatch" in dashboard["tags"]
    if name != "hopwatch-cascade.json":  # it asks Prometheus nothing
        assert [each["name"] for each in dashboard["annotations"]["list"]] == ["Alerts"]


def metrics_in(expression):
    """The names of metrics in an expression: what stands before a selector, or alone."""
    bare = re.sub(r"\{[^}]*\}|\b(?:by|without)\s*\([^)]*\)|\[[^]]*\]", " ", expression)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w|\s*\()", bare)
    return {word for word in words if word not in ("or", "and", "unless", "by", "e", "s")}


def test_every_expression_is_about_metrics_that_the_collector_has():
    for where, expression in of_panels():
        found = metrics_in(filled_in(expression))
        assert found, (where, expression)
        assert found <= KNOWN, (where, found - KNOWN)
    for rule in rules():
        assert metrics_in(rule["expr"]) <= KNOWN, rule["alert"]


def test_every_metric_of_the_collector_is_on_a_page():
    shown = set().union(*(metrics_in(filled_in(each.expression)) for each in of_panels()))
    assert KNOWN - shown == set()
