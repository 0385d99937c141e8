"""What does somebody get who types `hopwatch` in a pipe? Real processes, and a collector with canned answers."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import pytest
from canned_cascades import ID, cascade, command, environment, free_port, hop, hopwatch, row
from click.testing import CliRunner

from hopwatch.cli.commands import hopwatch as commands
from hopwatch.collector.access import Access

FLYING = cascade("in_flight", [hop("a" * 16, state="open")])


# show and ls


def test_show_in_a_pipe_is_plain_lines(collector):
    collector.say(FLYING)
    done = hopwatch("show", ID[:6], "--url", collector.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [f"cascade {ID}", "verdict in_flight"]
    assert "\x1b" not in done.stdout
    assert not set(done.stdout) & set("│├└─╴●○")


def test_show_json_is_the_collectors_object(collector):
    collector.say(FLYING)
    done = hopwatch("show", ID, "--json", HOPWATCH_URL=collector.url + "/")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == FLYING


def test_show_of_an_id_that_nobody_knows_says_so(collector):
    done = hopwatch("show", "abc", "--url", collector.url)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no cascade abc is known" in done.stderr
    assert "hopwatch ls" in done.stderr


def test_show_of_a_prefix_that_is_not_unique_is_a_wrong_value(collector):
    collector.say(FLYING)
    collector.say(FLYING, id=ID[:-1] + "d")
    done = hopwatch("show", ID[:6], "--url", collector.url)
    assert done.returncode == 2
    assert "is the beginning of 2 cascades" in done.stderr


def test_ls_is_one_line_a_cascade_and_asks_for_the_verdicts_that_are_wanted(collector):
    collector.rows = [row(), row("stalled", "b" * 32, open=2), row("broken", "c" * 32)]
    done = hopwatch(
        "ls", "--verdict", "stalled", "--verdict", "In Flight", "--limit", "7", "--url", collector.url
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("b" * 32 + "  stalled ")
    assert "2/14 open" in line
    assert collector.asked == [f"{collector.url}/api/cascades?verdict=stalled&verdict=in_flight&limit=7"]


def test_ls_json_is_the_collectors_list(collector):
    collector.rows = [row()]
    done = hopwatch("ls", "--json", "--url", collector.url)
    assert json.loads(done.stdout) == {"cascades": [row()]}


def test_ls_of_nothing_keeps_the_pipe_empty(collector):
    done = hopwatch("ls", "--url", collector.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert "has no cascade" in done.stderr


def test_json_brings_no_escape_to_a_terminal(collector):
    evil = cascade("settled", [hop("a" * 16, name="\x1b[2Jgone\u202eevil")])
    collector.say(evil)
    done = hopwatch("show", ID, "--json", "--url", collector.url)
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert json.loads(done.stdout) == evil


# wait


@pytest.mark.parametrize(("verdict", "code"), [("settled", 0), ("stranded", 13), ("broken", 14)])
def test_wait_ends_at_once_when_the_verdict_is_final(collector, verdict, code):
    collector.say(FLYING, FLYING, cascade(verdict))
    done = hopwatch("wait", ID, "--timeout", "50", "--url", collector.url)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == [
        "in_flight: This one is in_flight.",
        f"{verdict}: This one is {verdict}.",
    ]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [("in_flight", 10), ("waiting", 11), ("stalled", 12), ("silent", 15), ("unknown", 16)],
)
def test_wait_ends_at_the_timeout_with_the_code_of_the_last_verdict(collector, verdict, code):
    collector.say(cascade(verdict))
    done = hopwatch("wait", ID, "--timeout", "0.05", "--json", "--url", collector.url)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["verdict"] == verdict


def test_wait_until_a_verdict_that_is_not_final_ends_there(collector):
    collector.say(FLYING, cascade("stalled"))
    done = hopwatch("wait", ID, "--until", "stalled", "--until", "waiting", "--url", collector.url)
    assert done.returncode == 12, done.stderr


def test_wait_strict_takes_no_opaque_peer_for_settled(collector):
    collector.say(cascade("settled", opaque=["elsewhere:80"]))
    assert hopwatch("wait", ID, "--url", collector.url).returncode == 0
    done = hopwatch("wait", ID, "--strict", "--timeout", "0.05", "--url", collector.url)
    assert done.returncode == 16
    assert "elsewhere:80" in done.stdout
    collector.say(cascade("settled"))
    assert hopwatch("wait", ID, "--strict", "--url", collector.url).returncode == 0


def test_wait_for_a_cascade_that_arrives_later(collector):
    collector.say(None, cascade("settled"))
    done = hopwatch("wait", ID, "--url", collector.url)
    assert done.returncode == 0, done.stderr
    assert [each.partition(":")[0] for each in done.stdout.splitlines()] == ["unknown", "settled"]


def test_wait_for_a_cascade_that_never_arrives_is_unknown(collector):
    done = hopwatch("wait", "abc", "--timeout", "0.05", "--json", "--url", collector.url)
    assert done.returncode == 16
    assert json.loads(done.stdout)["verdict"] == "unknown"
    assert "has not heard of a cascade abc" in done.stderr


def test_wait_outlasts_a_collector_that_fails_for_a_moment(collector):
    collector.say(FLYING, 503, 503, cascade("settled"))
    done = hopwatch("wait", ID, "--timeout", "30", "--url", collector.url)
    assert done.returncode == 0, done.stderr


def test_wait_on_a_collector_that_fails_from_the_start_is_a_failure(collector):
    collector.say(503)
    done = hopwatch("wait", ID, "--timeout", "30", "--url", collector.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the store is busy" in done.stderr


# what goes wrong


@pytest.mark.parametrize("words", [("ls",), ("show", "ab"), ("wait", "ab"), ("wait", "ab", "--json")])
def test_a_collector_that_cannot_be_reached_is_one_sentence_with_the_remedy(words):
    url = f"http://127.0.0.1:{free_port()}"
    done = hopwatch(*words, "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    for part in (url, "hopwatch serve", "--url"):
        assert part in done.stderr


def test_something_else_than_a_collector_is_told_apart(collector):
    done = hopwatch("show", "dead", "--url", collector.url)
    assert done.returncode == 1
    assert "is not a hopwatch collector" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ls", "--verdict", "fine"), ("'fine'", "in_flight")),
        (("ls", "--limit", "0"), ("0", "1<=x<=1000")),
        (("show", "xyz"), ("'xyz'", "32 hex digits")),
        (("show", "a" * 33), ("a" * 33, "32 hex digits")),
        (("wait", "ab", "--timeout", "nan"), ("'nan'", "number of seconds")),
        (("wait", "ab", "--timeout", "-1"), ("'-1'", "number of seconds")),
        (("wait", "ab", "--until", "never"), ("'never'", "stalled")),
        (("ls", "--url", "ftp://here"), ("'ftp://here'", "http://127.0.0.1:4318")),
        (("ls", "--url", "http://here:99999"), ("'http://here:99999'", "http://127.0.0.1:4318")),
        (("serve", "--port", "70000"), ("70000", "65535")),
        (("serve", "--max-size", "lots"), ("'lots'", "500M")),
        (("fly",), ("fly",)),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(words, said):
    done = hopwatch(*words)
    assert (done.returncode, done.stdout) == (2, "")
    for part in said:
        assert part in done.stderr


def test_a_wrong_url_in_the_environment_names_the_variable():
    done = hopwatch("ls", HOPWATCH_URL="here")
    assert done.returncode == 2
    assert "HOPWATCH_URL" in done.stderr


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(collector):
    collector.rows = [row()]
    proxy = f"http://127.0.0.1:{free_port()}"
    done = hopwatch(
        "ls", "--url", collector.url, HTTP_PROXY=proxy, http_proxy=proxy, NO_PROXY="", no_proxy=""
    )
    assert done.returncode == 0, done.stderr


def test_the_version_is_told():
    done = hopwatch("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "hopwatch")


def test_without_the_extra_it_says_which_one_to_install():
    program = "import sys; sys.modules['click'] = None; from hopwatch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "hopwatch[collector]" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(collector):
    collector.say(cascade("in_flight", [hop(f"{i:04}", name="x" * 190) for i in range(2000)]))
    show = subprocess.Popen(
        command("show", ID, "--json", "--url", collector.url),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    show.stdout.readline()
    show.stdout.close()
    assert show.stderr.read() == ""
    show.stderr.close()
    assert show.wait(60) in (0, 1)  # by click's version


# what only passes on


def _stand_in(monkeypatch, name, **members):
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


class ServeError(Exception):
    pass


def test_serve_passes_its_options_on(monkeypatch, tmp_path):
    asked = {}
    _stand_in(
        monkeypatch,
        "hopwatch.collector.serve",
        ServeError=ServeError,
        serve=lambda **options: asked.update(options),
        parse_duration={"7d": 604_800.0, "12h": 43_200.0}.__getitem__,
        parse_size={"2GiB": 2 * 2**30, "3GiB": 3 * 2**30}.__getitem__,
    )
    store = tmp_path / "hops.db"
    words = [
        "serve",
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--retain",
        "12h",
        "--max-size",
        "3GiB",
        "--store",
        str(store),
        "--blackbox",
        "off",
    ]
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 0, done.output
    assert asked == {
        "host": "127.0.0.1", "port": 0, "grpc_port": 0, "store": str(store), "retain": 43_200.0, "max_size": 3 * 2**30,
        "blackbox": None, "access": Access(), "trace_url": None,
    }  # fmt: skip


def test_serve_that_cannot_start_says_why(monkeypatch):
    def serve(**_):
        raise ServeError("Port 4318 is taken. Use --port.")

    _stand_in(
        monkeypatch,
        "hopwatch.collector.serve",
        ServeError=ServeError,
        serve=serve,
        parse_duration=lambda _: 1.0,
        parse_size=lambda _: 1,
    )
    done = CliRunner().invoke(commands, ["serve"])
    assert (done.exit_code, done.stderr) == (1, "Error: Port 4318 is taken. Use --port.\n")


def test_serve_refuses_a_duration_that_is_none(monkeypatch):
    def parse_duration(text):
        raise ValueError(f"{text!r} is not a duration such as 7d")

    _stand_in(
        monkeypatch,
        "hopwatch.collector.serve",
        ServeError=ServeError,
        serve=None,
        parse_duration=parse_duration,
    )
    done = CliRunner().invoke(commands, ["serve", "--retain", "long"])
    assert done.exit_code == 2
    assert "'long' is not a duration such as 7d" in done.stderr


@pytest.fixture
def demonstration(monkeypatch):
    asked = []

    def main(**options):
        asked.append(options)
        return 3

    _stand_in(monkeypatch, "hopwatch.demo.faults", FAULTS={"none": object(), "hang": object()})
    _stand_in(monkeypatch, "hopwatch.demo.run", main=main)
    return asked


def test_demo_ends_with_the_code_of_the_demonstration(demonstration):
    done = CliRunner().invoke(commands, ["demo", "--fault", "hang", "--hold", "--json"])
    assert done.exit_code == 3, done.output
    assert demonstration == [{"fault": "hang", "json": True, "hold": True, "sdk": None, "binding": "jsonrpc"}]


def test_demo_names_the_faults_that_there_are(demonstration):
    done = CliRunner().invoke(commands, ["demo", "--fault", "flood"])
    assert done.exit_code == 2
    assert "'flood' is not one of none, hang." in done.stderr
    assert demonstration == []
