"""Do the compose file and the Dockerfile hold what they promise? There is no container engine where this is tested.

So both are read by the parsers of Compose and BuildKit, each mounted configuration by the program that it configures, and the
Dockerfile and the services that run our own image are run in namespaces (`engine`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from engine import REPOSITORY, engine, needs_namespaces, place, reader
from prometheus_programs import needs, programs

if sys.version_info < (3, 11):
    import tomli as tomllib
else:
    import tomllib

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(1200)]

STACK = REPOSITORY / "stack"
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*")
ALONE = {"secrets", "hopwatch"}
AROUND = {"otelcol", "tempo", "prometheus", "alertmanager", "alerts", "grafana"}
ONCE = {"secrets", "user"}
"""These do what they have to and leave: there is nothing that could be asked how it is."""


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    return reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def project(read):
    return read("compose", REPOSITORY / "docker-compose.yml")


def until(look, what, say, within=240):
    deadline = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come within {within} s: {say()}"
        time.sleep(0.2)
    return found


# What is written -------------------------------------------------------------------------------------------------


def test_each_profile_has_its_services_and_hopwatch_runs_with_none(project):
    profiles = {}
    for name, service in project["services"].items():
        for profile in service.get("profiles") or [""]:
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "": ALONE,
        "grafana": AROUND,
        "jaeger": {"otelcol-jaeger", "jaeger"},
        "demo": {"frontdesk", "planner", "worker", "user"},
    }


@pytest.mark.parametrize(
    ("what", "text", "why"),
    [
        ("compose", "services: {one: {image: one, heathcheck: {}}}", "heathcheck"),
        ("compose", "services: {one: {image: one, depends_on: [two]}}", "two"),
        ("compose", "services: {one: {image: one, hostname: '${NOT_SET}'}}", "NOT_SET"),
        ("dockerfile", "FROM one\nCOPPY here there\n", "COPPY"),
        ("dockerfile", "FROM one as two\n", "FromAsCasing"),
    ],
)
def test_what_is_wrong_in_a_file_is_refused_by_those_who_read_it(read, tmp_path, what, text, why):
    path = tmp_path / "file.yml"
    path.write_text(text)
    with pytest.raises(AssertionError, match=why):
        read(what, path)


def test_every_service_is_locked_up_and_says_how_it_is(project):
    for name, service in project["services"].items():
        number, _, group = service["user"].partition(":")
        assert number.isdigit() and int(number) > 0 and group.isdigit(), name  # noqa: PT018
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "env_file"} & set(service), name
        assert (service["restart"], "healthcheck" in service) in (
            [("no", False)] if name in ONCE else [("unless-stopped", True)]
        ), name


def test_nothing_is_published_but_on_loopback(project):
    published = {
        (name, each["host_ip"], each["published"])
        for name, service in project["services"].items()
        for each in service.get("ports", ())
    }
    assert {host for _, host, _ in published} == {"127.0.0.1"}
    ports = [port for _, _, port in published]
    assert sorted(set(ports)) == sorted(ports)
    assert {name for name, _, _ in published} == {
        "hopwatch", "otelcol", "otelcol-jaeger", "prometheus", "alertmanager", "grafana", "jaeger"
    }  # fmt: skip
    assert "host" not in {service.get("network_mode") for service in project["services"].values()}


def test_every_image_is_pinned_and_ours_has_our_version(project, read):
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for name, service in project["services"].items():
        assert PINNED.fullmatch(service["image"]), name
        build = service.get("build", {})
        base = build.get("args", {}).get("IMAGE")
        if base is not None:
            assert PINNED.fullmatch(base), name
            assert service["image"].rpartition(":")[2] == base.rpartition(":")[2], name
        elif build:
            assert service["image"] in (f"hopwatch:{version}", f"hopwatch-demo:{version}"), name
    for path in (REPOSITORY / "Dockerfile", STACK / "probe.Dockerfile"):
        stages = read("dockerfile", path)
        names = {stage["Name"] for stage in stages}
        for stage in stages:
            assert stage["Base"] in names or stage["Base"] == "${IMAGE}" or PINNED.fullmatch(stage["Base"])


def test_the_collector_in_between_is_of_the_version_that_is_tested(project):
    tested = yaml.safe_load((STACK / "otelcol" / "builder.yaml").read_text("utf-8"))["dist"]["version"]
    for name in ("otelcol", "otelcol-jaeger"):
        assert project["services"][name]["build"]["args"]["IMAGE"].endswith(f":{tested}")


def test_every_path_that_is_mounted_exists_and_is_read_only(project):
    for name, service in project["services"].items():
        for each in service.get("volumes", ()):
            if each["type"] == "bind":
                assert Path(each["source"]).exists(), (name, each["source"])
                assert each["read_only"] is True, (name, each["source"])
        assert Path(service.get("build", {}).get("context", "/")).is_dir()


def test_who_reads_the_secrets_is_in_their_group_and_waits_for_them(project):
    for name, service in project["services"].items():
        mounted = [each for each in service.get("volumes", ()) if each["source"] == "secrets"]
        if not mounted or name == "secrets":
            continue
        assert mounted[0]["read_only"] is True, name
        assert service["user"] == "10001:10001" or service["group_add"] == ["10001"], name
        # Directly, or by somebody whom it waits for.
        assert set(service["depends_on"]) & {"secrets", "frontdesk"}, name


def test_a_trace_url_is_handed_on_and_none_leaves_nothing(read, project):
    template = "http://127.0.0.1:3000/d/hopwatch-cascade?var-cascade={trace}&kiosk"
    given = read("compose", REPOSITORY / "docker-compose.yml", HOPWATCH_TRACE_URL=template)
    command = project["services"]["hopwatch"]["command"]
    assert not [word for word in command if "trace-url" in word or not word]
    assert given["services"]["hopwatch"]["command"] == [*command, f"--trace-url={template}"]


# What is mounted ---------------------------------------------------------------------------------------------------


def laid_out(project, name, folder):
    """A service's mounted files as its container has them, with secrets made."""
    for each in project["services"][name]["volumes"]:
        target = folder / each["target"].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if each["type"] == "volume":
            target.mkdir()
            if each["source"] == "secrets":
                subprocess.run(
                    [sys.executable, str(STACK / "make_secrets.py"), str(target), "token"],
                    check=True, timeout=240, capture_output=True,
                )  # fmt: skip
        elif Path(each["source"]).is_dir():
            shutil.copytree(each["source"], target)
        else:
            shutil.copy(each["source"], target)
    return folder


def named_in(command, option):
    return next(word.partition("=")[2] for word in command if word.startswith(f"{option}="))


def test_promtool_takes_the_configuration_as_it_is_mounted(project, tmp_path):
    command = project["services"]["prometheus"]["command"]
    path = laid_out(project, "prometheus", tmp_path) / named_in(command, "--config.file").lstrip("/")
    done = subprocess.run(
        [needs("promtool"), "check", "config", str(path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout
    # The same as for those who have a Prometheus already, but for where things are.
    stack, alone = (
        yaml.safe_load(each.read_text("utf-8"))
        for each in (path, REPOSITORY / "dashboards/alerts/prometheus.yml")
    )
    assert (stack["global"], stack["rule_files"]) == (alone["global"], alone["rule_files"])
    assert stack["scrape_configs"][0]["job_name"] == alone["scrape_configs"][0]["job_name"] == "hopwatch"


def test_a_configuration_that_names_no_token_is_refused_by_promtool(project, tmp_path):
    promtool = needs("promtool")
    folder = laid_out(project, "prometheus", tmp_path) / "etc/prometheus"
    (folder / "secrets" / "token").unlink()
    done = subprocess.run(
        [promtool, "check", "config", str(folder / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "token" in done.stdout + done.stderr


def test_amtool_takes_the_configuration_as_it_is_mounted_and_its_webhook_is_the_one_beside_it(
    project, tmp_path
):
    services = project["services"]
    path = laid_out(project, "alertmanager", tmp_path) / named_in(
        services["alertmanager"]["command"], "--config.file"
    ).lstrip("/")
    done = subprocess.run(
        [needs("amtool"), "check-config", str(path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ((webhook,),) = [each["webhook_configs"] for each in yaml.safe_load(path.read_text("utf-8"))["receivers"]]
    address = urlsplit(webhook["url"])
    assert address.hostname == "127.0.0.1"
    assert services["alerts"]["network_mode"] == "service:alertmanager"
    assert services["alerts"]["command"] == ["--port", str(address.port)]


@pytest.mark.parametrize("name", ["otelcol", "otelcol-jaeger"])
def test_the_opentelemetry_collector_takes_its_configuration_as_it_is_mounted(project, tmp_path, name):
    otelcol = programs.find("otelcol")
    if otelcol is None:
        pytest.skip(
            "there is no OpenTelemetry Collector: HOPWATCH_OTELCOL names none; stack/otelcol/build makes one"
        )
    service = project["services"][name]
    root = laid_out(project, name, tmp_path)
    command = [
        word.replace("=/etc/", f"={root}/etc/").replace("file:/", f"file:{root}/")
        for word in service["command"]
    ]
    environment = {**service["environment"], "OTELCOL_STORAGE": str(root / "var/lib/kept")}
    done = subprocess.run(
        [otelcol, "validate", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_targets_and_data_sources_are_services_and_dashboards_are_all_there(project):
    services = project["services"]
    found = {
        target.partition(":")[0]
        for path in (STACK / "prometheus" / "targets").glob("*.yml")
        for group in yaml.safe_load(path.read_text("utf-8"))
        for target in group["targets"]
    }
    assert found == {"hopwatch", "localhost", "alertmanager", "tempo", "grafana", "otelcol"}
    mounted = {each["target"]: Path(each["source"]) for each in services["grafana"]["volumes"]}
    provisioning = mounted["/etc/grafana/provisioning"]
    sources = yaml.safe_load((provisioning / "datasources" / "hopwatch.yaml").read_text("utf-8"))[
        "datasources"
    ]
    assert {each["type"]: each["uid"] for each in sources} == {
        "prometheus": "prometheus", "tempo": "tempo", "alertmanager": "alertmanager"
    }  # fmt: skip
    # Each dashboard takes any source of a kind that it names: there has to be one, and Prometheus's is the default.
    assert [each["type"] for each in sources if each.get("isDefault")] == ["prometheus"]
    assert {urlsplit(each["url"]).hostname for each in sources} <= set(services)
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "hopwatch.yaml").read_text("utf-8"))[
        "providers"
    ]
    shown = {
        path.name for target, path in mounted.items() if target.startswith(f"{provider['options']['path']}/")
    }
    assert shown == {path.name for path in (REPOSITORY / "dashboards").glob("*.json")}


def test_tempo_keeps_its_traces_where_its_volume_is_and_listens_where_they_are_sent(project):
    services = project["services"]
    (path,) = [each["source"] for each in services["tempo"]["volumes"] if each["type"] == "bind"]
    said = yaml.safe_load(Path(path).read_text("utf-8"))
    (volume,) = [each["target"] for each in services["tempo"]["volumes"] if each["type"] == "volume"]
    kept = said["storage"]["trace"]
    assert all(each["path"].startswith(f"{volume}/") for each in (kept["wal"], kept["local"]))
    assert services["tempo"]["build"]["args"]["KEPT"] == volume
    listens = said["distributor"]["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert services["otelcol"]["environment"]["STORE_URL"] == f"http://tempo:{listens.rpartition(':')[2]}"
    assert f":{said['server']['http_listen_port']}/" in services["tempo"]["healthcheck"]["test"][-1]


# What runs our own image -------------------------------------------------------------------------------------------


@pytest.fixture
def running(read, project):
    """hopwatch as `docker compose up` starts it, from an image that was built as the Dockerfile says."""
    needs_namespaces()
    folder = place()
    try:
        with engine(folder, read, project) as made:
            made.start("secrets")
            assert made.processes["secrets"].wait(240) == 0, made.log("secrets").read_text()
            made.start("hopwatch")
            until(lambda: made.is_healthy("hopwatch"), "the collector", made.log("hopwatch").read_text)
            yield made
    finally:
        shutil.rmtree(folder)


def test_our_own_services_run_as_the_compose_file_says(running, project, read):
    # One test, for the image is built for it.
    the_collector_of_the_image_runs_as_nobody_in_particular_and_can_write_to_its_volumes_alone(running)
    a_secret_is_made_once_and_is_for_its_group(running, project)
    nobody_gets_anything_without_the_token_by_the_name_of_the_service_or_any_other(running)
    the_image_has_no_pip_and_only_what_the_collector_needs(running)
    without_a_token_the_image_refuses_to_start(running)
    the_demo_settles_in_its_containers_and_a_worker_that_is_killed_is_told_of(running, read)


def the_collector_of_the_image_runs_as_nobody_in_particular_and_can_write_to_its_volumes_alone(running):
    places = "/ /opt /opt/hopwatch /etc /var/lib/hopwatch /run/hopwatch /tmp /var/lib/hopwatch/store /var/lib/hopwatch/boxes"
    script = (
        f"id -u; id -g; for at in {places}; do touch $at/x 2>/dev/null && echo $at && rm $at/x; done; true"
    )
    done = running.does("hopwatch", "sh", "-c", script)
    assert done.stdout.split() == ["10001", "10001", *places.split()[-3:]], done.stderr
    assert "without encryption" in running.log("hopwatch").read_text()
    assert (running.folder / "volumes" / "store" / "hopwatch.sqlite").stat().st_uid == 10001


def a_secret_is_made_once_and_is_for_its_group(running, project):
    token = running.folder / "volumes" / "secrets" / "token"
    found = token.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (10001, 10001, 0o640)
    before = token.read_text()
    running.start("secrets")
    assert running.processes["secrets"].wait(240) == 0
    assert token.read_text() == before
    assert before not in running.log("secrets").read_text()
    # Prometheus and Grafana are not its owner.
    for name in ("prometheus", "grafana"):
        service = {
            **project["services"]["hopwatch"],
            **{key: project["services"][name][key] for key in ("user", "group_add")},
        }
        image = replace(running.image("hopwatch"), folder="/")
        for groups, code in ((["10001"], 0), ([], 1)):
            command = running._contained(
                {**service, "group_add": groups}, image, ["cat", "/run/hopwatch/token"]
            )
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == code, (name, groups, done.stderr)


def nobody_gets_anything_without_the_token_by_the_name_of_the_service_or_any_other(running):
    def asked(host, token=""):
        say = (
            "import sys, urllib.request as web, urllib.error\n"
            "asks = web.Request('http://127.0.0.1:4318/api/cascades', headers={'Host': sys.argv[1], 'Authorization': sys.argv[2]})\n"
            "try: print(web.urlopen(asks, timeout=60).status)\n"
            "except urllib.error.HTTPError as error: print(error.code)\n"
        )
        return running.does("hopwatch", "python", "-c", say, host, f"Bearer {token}").stdout.strip()

    token = (running.folder / "volumes" / "secrets" / "token").read_text()
    for host in ("hopwatch:4318", "127.0.0.1:4318", "localhost"):
        assert (asked(host), asked(host, token)) == ("401", "200")
    assert asked("evil.example", token) == "421"


def the_image_has_no_pip_and_only_what_the_collector_needs(running):
    done = running.does("hopwatch", "/opt/hopwatch/bin/python", "-c", "import importlib.util as u; print([n for n in ('pip', 'a2a', 'pytest') if u.find_spec(n)])")  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
    # What the image's own health check asks is what the compose file asks.
    assert (
        running.image("hopwatch").healthcheck
        == running.project["services"]["hopwatch"]["healthcheck"]["test"]
    )


def without_a_token_the_image_refuses_to_start(running):
    image = running.image("hopwatch")
    service = {**running.project["services"]["hopwatch"], "volumes": []}
    command = running._contained(service, image, [*image.entrypoint, *image.command])
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "--token-file" in done.stderr


def the_demo_settles_in_its_containers_and_a_worker_that_is_killed_is_told_of(running, read):
    agents = ("frontdesk", "planner", "worker")
    for name in agents:
        running.start(name)
    for name in agents:
        until(lambda name=name: running.is_healthy(name), name, running.log(name).read_text)
    running.start("user")
    assert running.processes["user"].wait(240) == 0, running.log("user").read_text()
    (settled,) = cascades(running, "settled")
    assert set(settled["agents"]) == {"user", *agents}
    # FAULT=hang docker compose --profile demo up, and then docker compose kill worker.
    hanging = read("compose", REPOSITORY / "docker-compose.yml", FAULT="hang")["services"]["worker"][
        "command"
    ]
    assert hanging[-2:] == ["--fault", "hang"]
    running.processes["worker"].terminate()
    running.processes["worker"].wait(240)
    running.project["services"]["worker"]["command"] = hanging
    running.start("worker")
    until(lambda: running.is_healthy("worker"), "worker", running.log("worker").read_text)
    running.start("user")
    cascades(running, "stalled")
    running.processes["worker"].kill()
    # The collector finds its black box: their containers share the folder, and nothing else.
    (broken,) = cascades(running, "broken")
    assert "killed" in broken["reason"]


def cascades(running, verdict):
    """Those with a verdict, as soon as there are any."""

    def look():
        done = running.does("hopwatch", "hopwatch", "ls", "--json")
        if done.returncode:  # a collector that stands still is asked again
            return []
        return [each for each in json.loads(done.stdout)["cascades"] if each["verdict"] == verdict]

    def say():
        done = running.does("hopwatch", "hopwatch", "ls")
        return done.stdout + done.stderr

    return until(look, verdict, say)
