"""The benchmarks that judge for themselves, shorter: many opens with one worker, and thousands of broken images."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("soak.py", ["--opens", "200", "--at-once", "20", "--rounds", "2"]),
        ("hostile.py", ["--inputs", "200", "--opens", "2"]),
    ],
)
def test_nothing_is_found_that_is_not_right(program: str, arguments: list[str]) -> None:
    command = [sys.executable, BENCHMARKS / program, *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stdout
