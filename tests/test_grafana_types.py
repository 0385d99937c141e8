"""Are the committed dashboards what Grafana 13's own types say a dashboard is? By TypeScript and @grafana/schema, from npm."""

import copy
import json
import re
import shutil
import subprocess

import pytest

from dashboard_expressions import FOLDER, dashboards

pytestmark = [pytest.mark.one_python, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """A function of a folder with dashboards: what TypeScript has against each file in it."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: the types of Grafana's dashboards come from npm")
    place = tmp_path_factory.mktemp("typecheck")
    for path in (FOLDER / "typecheck").iterdir():
        if path.is_file():
            shutil.copy(path, place)
    install = ["npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=place, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    def found(folder):
        subprocess.run(
            ["node", "generate.mjs", str(folder)], cwd=place, check=True, capture_output=True, timeout=600
        )
        done = subprocess.run(
            ["node", "node_modules/typescript/bin/tsc", "--project", ".", "--pretty", "false"],
            cwd=place, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        errors = re.findall(r"^generated/([\w-]+)\.ts\(\d+,\d+\): error (.*)$", done.stdout, re.MULTILINE)
        assert bool(errors) == (done.returncode != 0), done.stdout + done.stderr
        return errors

    return found


def test_every_committed_dashboard_has_the_types_of_grafana_13(check):
    assert check(FOLDER) == []


def test_what_is_wrong_in_a_dashboard_is_found_wherever_it_stands(check, tmp_path):
    whole = dashboards()["hopwatch-cascades.json"]

    def the(dashboard, kind):
        return next(panel for panel in dashboard["panels"] if panel["type"] == kind)

    def inside(dashboard):
        return next(row for row in dashboard["panels"] if row.get("panels"))["panels"][0]

    wrong = {
        "a-number-that-is-a-word": lambda made: made.update(schemaVersion="42"),
        "a-word-that-there-is-not": lambda made: the(made, "stat")["options"].update(colorMode="valve"),
        "an-option-that-there-is-not": lambda made: the(made, "table")["options"].update(footer={"show": False}),
        "a-field-s-setting": lambda made: the(made, "timeseries")["fieldConfig"]["defaults"]["custom"].update(lineWidth="1"),
        "a-panel-without-its-type": lambda made: the(made, "stat").update(type="stats"),
        "a-panel-inside-a-row": lambda made: inside(made)["options"].update(showHeader="yes"),
        "a-variable": lambda made: made["templating"]["list"][0].update(auto_count=30),
        "an-annotation": lambda made: made["annotations"]["list"][0].update(iconColor=3),
        "a-place": lambda made: the(made, "stat")["gridPos"].update(w="3"),
    }  # fmt: skip
    for name, change in wrong.items():
        made = copy.deepcopy(whole)
        change(made)
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    (tmp_path / "nothing-is-wrong.json").write_text(json.dumps(whole))
    assert {name for name, _ in check(tmp_path)} == set(wrong)
