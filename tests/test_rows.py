"""Does the table of what else hopwatch was run with say what came of the tests, and nothing else?"""

import os
import subprocess
import sys
import textwrap

import pytest

import rows

PAGE = f"# Title\n\n{rows.BEGIN}\n\nold\n\n{rows.END}\n\n## More\n"


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
            env={**os.environ, "PYTHONPATH": f"{rows.ROOT / 'tests'}:{rows.ROOT / 'src'}"},
            capture_output=True,
            timeout=280,
            check=False,
        )
        return rows.told(report)

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

    lines = rows.table(found).splitlines()
    assert lines == [
        *rows.HEAD.splitlines(),
        "| a second | row | - | **1 of 1 failed** |",
        "| clients | another | no-such-distribution (not installed) | not run: it is not installed |",
        f"| clients | httpx | httpx {version('httpx')} | 1 passed, 1 not run |",
        f"| clients | httpx, again | httpx {version('httpx')} | **1 of 1 failed** |",
    ]
    assert list(rows.problems(found)) == [
        "a second, row: 1 of 1 tests failed",
        "clients, httpx, again: 1 of 1 tests failed",
    ]


def test_only_what_is_between_the_marks_is_written_anew():
    assert rows.written(PAGE, "new") == f"# Title\n\n{rows.BEGIN}\n\nnew\n\n{rows.END}\n\n## More\n"
    with pytest.raises(ValueError, match="no place"):
        rows.written("# Title\n", "new")


def test_no_row_at_all_is_a_problem():
    assert list(rows.problems({})) == ["no test stands for a row"]
