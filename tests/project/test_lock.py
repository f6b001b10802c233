"""The locked versions in requirements/ are in step with the ranges in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version
from support.paths import PROJECT

PYPROJECT: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PLATFORMS = ["linux", "darwin"]

#: The extra that each file has, with the dependencies of the package itself.
EXTRAS = {"check": "check", "demo": "dashboard", "docs": "docs"}
#: And the dependency groups.
GROUPS = {"check": ["build", "lock"], "demo": ["build"], "docs": ["build", "dist"]}


def required(extra: str, groups: list[str]) -> Iterator[Requirement]:
    """Yield what pyproject.toml asks for, with the extras that an extra names."""
    project = PYPROJECT["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"][extra]]
    texts += [text for group in groups for text in PYPROJECT["dependency-groups"][group]]
    for text in texts:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for inner in requirement.extras:
                yield from required(inner, [])
        else:
            yield requirement


def locked(name: str) -> list[Requirement]:
    """Read the requirements of a lock file, each of which must have hashes."""
    text = (PROJECT / "requirements" / f"{name}.txt").read_text("utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    for entry in entries:
        assert "--hash=sha256:" in entry, f"{entry.splitlines()[0]} has no hash"
    return [Requirement(entry.split(" \\\n")[0]) for entry in entries]


def versions(name: str, python: str, platform: str) -> dict[str, Version]:
    """Give the version of each package that pip would install from a lock file."""
    environment: dict[str, str] = {**default_environment(), "sys_platform": platform}  # type: ignore[dict-item]
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, Version] = {}
    for entry in locked(name):
        if entry.marker is None or entry.marker.evaluate(environment):
            (pin,) = entry.specifier
            assert pin.operator == "=="
            assert entry.name not in found, f"{entry.name} is there twice"
            found[entry.name] = Version(pin.version)
    return found


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_requirement_is_locked_within_its_range(name: str, python: str, platform: str) -> None:
    found = versions(name, python, platform)
    for requirement in required(EXTRAS[name], GROUPS[name]):
        assert requirement.name in found, f"{requirement.name} is missing: run `make lock`"
        version = found[requirement.name]
        assert requirement.specifier.contains(version), (
            f"{requirement} does not allow the locked {version}: run `make lock`"
        )


@pytest.mark.parametrize("python", PYTHONS)
def test_the_demo_is_run_with_versions_that_are_tested(python: str) -> None:
    assert versions("demo", python, "linux").items() <= versions("check", python, "linux").items()


def test_what_builds_the_package_is_locked() -> None:
    assert PYPROJECT["build-system"]["requires"] == [
        text.replace(" ", "") for text in PYPROJECT["dependency-groups"]["build"]
    ]


def test_the_supported_pythons_are_those_that_are_locked() -> None:
    assert PYPROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
