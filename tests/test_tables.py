"""Do the tables of docs/compatibility.md say what came of the tests, and nothing else?"""

import os
import subprocess
import sys
import textwrap

import pytest

import tables

BEGIN, END = "<!-- rows: made by `make matrix`, do not edit -->", "<!-- end of rows -->"
PAGE = f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\n## More\n"


@pytest.fixture
def told(tmp_path):
    """Run a module of tests with the conftest of this folder; returns the rows of its report."""

    def run(text):
        module = tmp_path / "test_it.py"
        module.write_text("import pytest\n" + textwrap.dedent(text))
        report = tmp_path / "report.xml"
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "row", "-n", "2", "-p", "no:cacheprovider"),
                *("-p", "conftest", "-o", "markers=row", "--rootdir", str(tmp_path), f"--junitxml={report}"),
                str(module),
            ],
            env={**os.environ, "PYTHONPATH": f"{tables.ROOT / 'tests'}:{tables.ROOT / 'src'}"},
            capture_output=True,
            timeout=280,
            check=False,
        )
        return tables.told_of_rows(report)

    return run


@pytest.mark.one_python
@pytest.mark.timeout(300)
def test_a_row_says_how_many_of_its_tests_passed_were_not_run_or_failed(told):
    found = told("""
        @pytest.mark.row("clients", "httpx", "httpx")
        @pytest.mark.parametrize("number", [1, 2])
        def test_one(number):
            if number == 2:
                pytest.skip("there is no two")

        @pytest.mark.row("clients", "another", "no-such-distribution")
        @pytest.mark.skipif(True, reason="it is not installed; ci: may be skipped")
        def test_two():
            pass

        @pytest.mark.row("clients", "httpx, again", "httpx")
        @pytest.mark.row("a second", "row")
        def test_three():
            assert False

        def test_that_stands_for_none():
            assert False
    """)
    from importlib.metadata import version

    lines = tables.table_of_rows(found).splitlines()
    assert lines == [
        "| what | which | release | tests |",
        "|---|---|---|---|",
        "| a second | row | - | **1 of 1 failed** |",
        "| clients | another | no-such-distribution (not installed) | not run: it is not installed |",
        f"| clients | httpx | httpx {version('httpx')} | 1 passed, 1 not run |",
        f"| clients | httpx, again | httpx {version('httpx')} | **1 of 1 failed** |",
    ]
    assert list(tables.problems(found)) == [
        "a second, row: 1 of 1 tests failed",
        "clients, httpx, again: 1 of 1 tests failed",
    ]


def test_only_what_is_between_the_marks_is_written_anew():
    assert tables.written(PAGE, "rows", "new") == PAGE.replace("old", "new")
    with pytest.raises(ValueError, match="no place"):
        tables.written("# Title\n", "rows", "new")


def test_no_row_at_all_is_a_problem():
    assert list(tables.problems({})) == ["no test stands for a row"]
