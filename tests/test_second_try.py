# SPDX-License-Identifier: BSD-3-Clause
"""A second try is given once, told, and counted over runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests import second_try

if TYPE_CHECKING:
    from pathlib import Path

_TESTS = """
from pathlib import Path
def test_passes(): pass
def test_second():
    tried = Path(__file__).parent / "tried"
    assert tried.exists() or tried.touch()
"""


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a run starts in half the time
    path = tmp_path / "test_some.py"
    path.write_text(_TESTS)
    return path


def _arguments(tests: Path) -> list[str]:
    return [
        "-q",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tests.parent),
        "-p",
        "no:warnings",
        str(tests),
    ]


def test_run_passed_at_the_second_try_is_told(
    tests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs") == 0
    told = capfd.readouterr().err
    assert "test_second passed at its second try (needed a second try in 1 of the last 1" in told
    assert "test_passes" not in told


def test_run_failed_twice_fails_and_counts_as_no_second_try(
    tests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tests.write_text("def test_fails(): assert False\n")
    assert second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs") == 1
    assert "passed at its second try" not in capfd.readouterr().err


def test_run_that_left_tests_out_has_no_second_try(
    tests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tests.write_text("import there_is_no_such_module\n")
    assert second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs") == 2
    assert "one more try" not in capfd.readouterr().err


def test_report_calls_two_second_tries_in_ten_runs_a_defect(
    tests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs")
    assert second_try.report(tmp_path / "runs") == 0
    told = capfd.readouterr().err
    assert "needed a second try in 1 of the last 1 runs" in told
    assert "some: no history: this is the first run" in told
    (tmp_path / "tried").unlink()
    second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs")
    assert second_try.report(tmp_path / "runs") == 1
    assert "in 2 of the last 2 runs here: mend it" in capfd.readouterr().err


def test_report_forgets_what_is_ten_runs_ago(
    tests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    older = [{"test_some.py::test_second": ""}, *[{}] * (second_try.KEPT_RUNS - 1)]
    (tmp_path / "runs/some.json").write_text(json.dumps(older))
    second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs")
    assert second_try.report(tmp_path / "runs") == 0
    assert "in 1 of the last 10 runs" in capfd.readouterr().err


def test_report_begins_anew_when_the_file_of_a_test_was_changed(
    tests: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_try, "ROOT", tmp_path)
    second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs")
    (tmp_path / "tried").unlink()
    tests.write_text(_TESTS + "# mended")
    second_try.run("some", _arguments(tests), tmp_path, tmp_path / "runs")
    assert second_try.report(tmp_path / "runs") == 0
    assert "in 1 of the last 2 runs here" in capfd.readouterr().err
