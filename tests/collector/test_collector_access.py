"""Where may a collector listen, and which token, certificate and names are taken? Nothing here listens at anything but loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from guarded import certificate, token_file
from hypothesis import given
from hypothesis import strategies as st

from hopwatch.collector.access import Access, address_of, is_loopback, read_access, warnings
from hopwatch.collector.serve import Collector, ServeError
from hopwatch.tokens import TokenError, digest, headers_of, put_into, read_token, same, sent_by_exporter

TOKEN = "0123456789abcdef"
ELSEWHERE = ["0.0.0.0", "::", "192.0.2.7", "2001:db8::1", "", "0"]


# Tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_token_is_the_one_line_of_its_file(tmp_path, ending):
    path = tmp_path / "token"
    path.write_bytes((TOKEN + ending).encode())
    path.chmod(0o640)  # a group that may read is how containers get at secrets
    assert read_token(str(path)) == TOKEN
    link = tmp_path / "link"  # and a link is how they are mounted
    link.symlink_to(path)
    assert read_token(str(link)) == TOKEN


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        ("fifteen-letters\n", 0o600, "has 15 characters, and 16 are the least"),
        ("", 0o600, "has 0 characters"),
        (TOKEN + "\n\n", 0o600, "is not one line"),
        (TOKEN + " ", 0o600, "is not one line"),
        (TOKEN + "\r\nx-evil: 1", 0o600, "is not one line"),
        ("a" * 1025, 0o600, "is not one line of at most 1024"),
        ("a" * 100_000, 0o600, "is longer than 1026 bytes"),
        ("pass:word" * 3, 0o600, "letters, digits and"),
        (TOKEN, 0o604, "has mode 0604, so that others can read or change it: chmod 600 it"),
        (TOKEN, 0o620, "chmod 600"),
        (TOKEN, 0o666, "chmod 600"),
    ],
)
def test_a_token_that_cannot_be_kept_or_sent_is_refused_with_the_remedy(tmp_path, content, mode, says):
    path = tmp_path / "token"
    path.write_bytes(content.encode())
    path.chmod(mode)
    with pytest.raises(TokenError) as raised:
        read_token(str(path))
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
    assert content.strip() not in str(raised.value) or not content.strip()


def test_a_token_s_path_that_is_no_file_is_refused_and_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path, "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        (tmp_path / "none", "cannot be read: No such file"),
        ("nul\0", "cannot be read"),
    ):
        with pytest.raises(TokenError, match=says):
            read_token(str(path))


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_only_the_same_token_is_the_same(one, two):
    assert same(one, digest(two)) == (one == two)


def test_an_exporter_is_told_the_token_where_it_has_no_authorization_of_its_own():
    environment = {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b,",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Basic%20abc",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x=1",
    }
    put_into(environment, TOKEN)
    assert environment == {
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-tenant=a%20b,authorization=Bearer%20{TOKEN}",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Basic%20abc",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": f"x=1,authorization=Bearer%20{TOKEN}",
    }
    assert sent_by_exporter(environment) is None  # that of traces goes first
    del environment["OTEL_EXPORTER_OTLP_TRACES_HEADERS"]
    assert sent_by_exporter(environment) == TOKEN


@given(st.from_regex(r"[A-Za-z0-9._~+/=-]{16,40}", fullmatch=True))
def test_any_token_survives_the_way_through_an_exporter_s_environment(token):
    from opentelemetry.util.re import parse_env_headers

    environment: dict[str, str] = {}
    put_into(environment, token)
    assert sent_by_exporter(environment) == token
    assert headers_of(environment["OTEL_EXPORTER_OTLP_HEADERS"]) == {"authorization": f"Bearer {token}"}
    assert parse_env_headers(environment["OTEL_EXPORTER_OTLP_HEADERS"]) == {
        "authorization": f"Bearer {token}"
    }


# Addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ELSEWHERE)
def test_beyond_loopback_nothing_is_opened_without_a_token_or_a_word(tmp_path, host):
    with pytest.raises(ValueError, match=r"--token-file, .* --insecure") as raised:
        read_access(host)
    assert repr(host) in str(raised.value)
    with pytest.raises(ServeError, match="--insecure"):  # whoever starts one from Python is held to it, too
        Collector(host, 0, 0, store=tmp_path / "hops.sqlite")
    assert not (tmp_path / "hops.sqlite").exists()
    assert read_access(host, insecure=True) == Access(insecure=True)
    path, token = token_file(tmp_path)
    access = read_access(host, token_file=path)
    assert access.token == token
    assert token not in repr(access)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_nothing(host):
    assert read_access(host) == Access()
    assert is_loopback(address_of(host))
    assert list(warnings(host, address_of(host), Access())) == []


def test_a_name_is_judged_by_the_address_that_is_listened_at(monkeypatch):
    found = [(10, 1, 6, "", ("::1", 0, 0, 0)), (2, 1, 6, "", ("192.0.2.7", 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    assert address_of("here") == "192.0.2.7"
    with pytest.raises(ValueError, match=r"--host 'here' \(192\.0\.2\.7\)"):
        read_access("here")


def test_what_is_risked_is_said():
    said = list(warnings("192.0.2.7", "192.0.2.7", Access(insecure=True)))
    assert len(said) == 2
    assert "read and write everything" in said[0]
    assert "without encryption" in said[1]
    (only,) = warnings("192.0.2.7", "192.0.2.7", Access(token=TOKEN))
    assert "the token and all telemetry go" in only
    assert TOKEN not in only


@pytest.mark.processes
@pytest.mark.timeout(480)
@pytest.mark.parametrize("module", [("hopwatch", "serve"), ("hopwatch.collector",)])
def test_the_command_ends_with_2_and_names_value_and_remedy(tmp_path, module):
    def serve(*options):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                *module,
                "--port",
                "0",
                "--grpc-port",
                "0",
                "--store",
                ":memory:",
                *options,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    bare, _ = token_file(tmp_path, mode=0o644)
    for options, says in (
        (("--host", "0.0.0.0"), ("'0.0.0.0'", "--token-file", "--insecure")),
        (("--token-file", bare), (bare, "0644", "chmod 600")),
        (("--tls-cert", "x"), ("--tls-key",)),
        (("--allow-host", "http://x"), ("'http://x'", "without scheme and port")),
    ):
        done = serve(*options)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        for part in says:
            assert part in done.stderr


# Certificates and names ----------------------------------------------------------------------------------------


def test_a_certificate_and_its_key_are_looked_at_before_anything_listens(tmp_path):
    pair = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other")
    (tmp_path / "locked").mkdir()
    locked = certificate(tmp_path / "locked", b"password")
    (tmp_path / "open").mkdir()
    bare = certificate(tmp_path / "open")
    Path(bare.key).chmod(0o644)
    access = read_access("127.0.0.1", tls_cert=pair.cert, tls_key=pair.key)
    assert access.tls is not None
    assert (access.tls.cert, access.tls.key) == pair
    for cert, key, says in (
        (pair.cert, None, "belong together"),
        (None, pair.key, "belong together"),
        (pair.cert, other.key, "cannot be used"),
        (pair.cert, pair.cert + "?", "cannot be read"),
        (pair.cert + "?", pair.key, "cannot be used"),
        (locked.cert, locked.key, "is encrypted"),
        (bare.cert, bare.key, "chmod 600"),
    ):
        with pytest.raises(ValueError, match=says):
            read_access("127.0.0.1", tls_cert=cert, tls_key=key)


@pytest.mark.parametrize(
    ("name", "taken"),
    [("Hopwatch.", "hopwatch"), ("a_b.example-1.org", "a_b.example-1.org"), ("[2001:DB8::1]", "2001:db8::1")],
)
def test_names_are_taken_in_one_form(name, taken):
    assert read_access("127.0.0.1", hosts=[name]).hosts == (taken,)


@pytest.mark.parametrize("name", ["", "*", "http://x", "x:80", "x/y", "x y", "-x", "a" * 254])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="--allow-host"):
        read_access("127.0.0.1", hosts=[name])
