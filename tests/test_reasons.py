"""What of an exception goes into a record as the reason?"""

import sqlite3

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from hopwatch.process import reason_of, without_url_secrets

PIECE = st.text("abcXYZ019-._~%", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no address in it?a=b#c", "no address in it?a=b#c"),
        ("for url 'http://u:p@h:1/a/b?k=s#f'\nand", "for url 'http://h:1/a/b'\nand"),
        ('<https://t@h?x> and "redis://:p@[::1]:6379/0"', '<https://h> and "redis://[::1]:6379/0"'),
        ("http://h/a@b?c", "http://h/a@b"),
        ("http://u:p@w@h/", "http://h/"),
        ("http://", "http://"),
    ],
)
def test_of_a_url_neither_user_nor_password_query_nor_fragment_is_shown(text, shown):
    assert without_url_secrets(text) == shown


@given(user=PIECE, password=PIECE, query=PIECE, fragment=PIECE, before=st.text("ab :'\n", max_size=300))
def test_what_httpx_says_of_a_refused_request_shows_no_secret_of_its_url(
    user, password, query, fragment, before
):
    url = f"http://zq{user}:zq{password}@127.0.0.1:1/a?zq{query}#zq{fragment}"
    response = httpx.Response(401, request=httpx.Request("POST", url))
    with pytest.raises(httpx.HTTPStatusError) as raised:
        response.raise_for_status()
    reason = reason_of(ValueError(before + str(raised.value)))
    assert "zq" not in reason
    assert len(reason) <= 200


def test_what_sqlalchemy_says_of_a_statement_shows_neither_it_nor_its_parameters():
    error = OperationalError(
        "UPDATE tasks SET status=?", ("what a user wrote",), sqlite3.OperationalError("database is locked")
    )
    assert reason_of(error) == "OperationalError: (sqlite3.OperationalError) database is locked"


def test_a_text_of_any_length_takes_no_time():
    for text in ("://" * 100_000, "://" + "@" * 300_000, "http://" + "a" * 300_000 + "?" * 300_000):
        assert len(reason_of(ValueError(text))) <= 200
