"""Which expressions do the dashboards and rules ask Prometheus? Taken out of the committed files, each with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import yaml

FOLDER = Path(__file__).parent.parent / "dashboards"
RULES = FOLDER / "alerts" / "hopwatch.yml"


class Asked(NamedTuple):
    """One expression."""

    where: str
    expression: str


def dashboards():
    """Each dashboard's JSON by its file's name."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard):
    """All panels but rows, those inside of closed rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def rules():
    return yaml.safe_load(RULES.read_text("utf-8"))["groups"][0]["rules"]


def of_panels():
    """What panels, annotations and variables of all dashboards ask Prometheus."""
    out = []
    for name, dashboard in dashboards().items():
        out += [
            Asked(f"{name}: {panel['title']}", target["expr"])
            for panel in panels(dashboard)
            for target in panel.get("targets", [])
            if target["datasource"]["type"] == "prometheus"
        ]
        out += [
            Asked(f"{name}: annotation {each['name']}", each["expr"])
            for each in dashboard.get("annotations", {}).get("list", [])
        ]
        for variable in dashboard["templating"]["list"]:
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", str(variable.get("query", "")))
            if found:
                out.append(
                    Asked(f"{name}: variable {variable['name']}", f"group by ({found[2]}) ({found[1]})")
                )
    return out


def of_rules():
    """What is asked by each side of each rule: the part that is compared, so that there is data also where nothing is wrong."""
    return [Asked(f"rule {rule['alert']}", rule["expr"]) for rule in rules()]


def compared(expression):
    """The expressions that a rule compares with a bound: each must have data, whether or not it fires."""
    return [
        part
        for part in re.split(r"\s(?:or|>|==)\s", expression)
        if not re.fullmatch(r"\s*\d+\s*", part) and "absent(" not in part
    ]


def filled_in(expression):
    """With the values of the variables, as Grafana fills them in for All."""
    return expression.replace("$__rate_interval", "20s").replace("$instance", ".*").replace("$agent", ".*")
