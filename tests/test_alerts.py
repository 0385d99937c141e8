"""Do the alert rules fire when they should, and lead to somebody? By promtool and amtool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dashboard_expressions import RULES, rules
from prometheus_programs import needs

FOLDER = RULES.parent
RUNBOOKS = Path(__file__).parent.parent / "docs" / "runbooks"
WANTED = {
    "TasksPendingAtShutdown", "CascadeStalled", "CascadeStranded", "CascadeBroken", "HopInFlightTooLong", "AgentSilent",
    "Deadlock", "TelemetryIncomplete", "CollectorDown",
}  # fmt: skip


def say(*command, cwd=FOLDER):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=110, check=False)


def test_every_alert_says_how_long_how_bad_and_what_to_do():
    assert {rule["alert"] for rule in rules()} == WANTED
    for rule in rules():
        assert set(rule) - {"keep_firing_for"} == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"].endswith(f"/{rule['alert']}.md")


def test_every_alert_has_a_runbook_with_commands_that_there_are():
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == WANTED
    from hopwatch.cli.commands import hopwatch as program

    for rule in rules():
        text = (RUNBOOKS / f"{rule['alert']}.md").read_text("utf-8")
        assert f"Severity: {rule['labels']['severity']}." in text
        assert re.findall("^## (.*)$", text, re.MULTILINE) == [
            "What it means", "What to look at", "What to do", "When it ends", "What it is not"
        ]  # fmt: skip
        for command in re.findall(r"^hopwatch (\S+)", text, re.MULTILINE):
            assert command in program.commands, (rule["alert"], command)
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert (RUNBOOKS / target).exists(), (rule["alert"], target)


def test_promtool_takes_the_rules_and_the_configuration():
    promtool = needs("promtool")
    for command in (("check", "rules", "hopwatch.yml"), ("check", "config", "prometheus.yml")):
        done = say(promtool, *command)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_fire_and_do_not_fire_as_their_tests_say():
    done = say(needs("promtool"), "test", "rules", "hopwatch_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_of_firing_and_one_of_not_firing():
    asked = {}
    for test in yaml.safe_load((FOLDER / "hopwatch_test.yml").read_text("utf-8"))["tests"]:
        for each in test["alert_rule_test"]:
            asked.setdefault(each["alertname"], set()).add(bool(each["exp_alerts"]))
    assert asked == {alert: {True, False} for alert in WANTED}


@pytest.mark.parametrize("wrong", ["vector(1) > 0", "vector(1) < 0"], ids=["always", "never"])
def test_a_rule_that_fires_always_or_never_fails_its_tests(tmp_path, wrong):
    promtool = needs("promtool")
    shutil.copy(FOLDER / "hopwatch_test.yml", tmp_path)
    document = yaml.safe_load(RULES.read_text("utf-8"))
    for rule in document["groups"][0]["rules"]:
        rule["expr"] = wrong
    (tmp_path / "hopwatch.yml").write_text(yaml.safe_dump(document))
    done = say(promtool, "test", "rules", "hopwatch_test.yml", cwd=tmp_path)
    assert done.returncode != 0
    assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == WANTED


def test_amtool_takes_the_route_and_every_severity_leads_to_the_webhook():
    amtool = needs("amtool")
    done = say(amtool, "check-config", "alertmanager.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    for severity in ("warning", "critical"):
        done = say(
            amtool, "config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}"
        )
        assert (done.returncode, done.stdout.strip()) == (0, "hopwatch"), done.stderr
