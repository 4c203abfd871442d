"""What the package asks for is what was tested, and what the documentation says."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
)
# Tested on a second machine too, at these older versions.
OLDER = {"torch": "2.11", "transformers": "5.17"}


def lowest(requirements):
    """Name, without its extras -> version."""
    pairs = (requirement.split(">=") for requirement in requirements if ">=" in requirement)
    return {name.partition("[")[0]: version for name, version in pairs}


def part(version, length):
    return version.split(".")[:length]


def test_the_lowest_versions_are_tested_ones():
    extras = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    for name, version in lowest([*PROJECT["dependencies"], *extras]).items():
        parts = version.split(".")
        assert part(OLDER.get(name, TESTED[name]), len(parts)) == parts, name


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_documentation_names_them(page):
    named = re.findall(r"torch (\d+\.\d+) with transformers (\d+\.\d+)", (ROOT / page).read_text())
    newest = tuple(".".join(part(TESTED[name], 2)) for name in OLDER)
    assert named == [tuple(OLDER.values()), newest]
