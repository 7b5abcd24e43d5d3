"""One set of versions, told three times: pyproject.toml, constraints.txt, environment.yml."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
# torch pins the accelerator runtimes it was built with; they differ from machine to machine.
RUNTIMES = ("nvidia-", "cuda-", "rocm", "triton-rocm", "pytorch-triton-rocm")
# AMD's AITER is built from source; on PyPI one name is another project, the other is too old.
NEVER = {"aiter", "amd-aiter"}


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    requirements = [Requirement(line) for line in constraint_lines()]
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}


def declared() -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    texts = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    return [Requirement(text) for text in (*texts, *(t for extra in extras for t in extra))]


def test_constraints_are_exact_sorted_and_portable():
    requirements = [Requirement(line) for line in constraint_lines()]
    names = [canonicalize_name(r.name) for r in requirements]
    assert len(names) > 100
    assert names == sorted(set(names))
    for requirement in requirements:
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert "+" not in pin.version, f"{requirement}: a local tag exists on one index only"


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    version = pins().get(canonicalize_name(requirement.name))
    assert version, f"{requirement.name} has no pin in constraints.txt"
    assert requirement.specifier.contains(version)


def test_everything_that_dependencies_bring_is_pinned_too():
    """Walk the installed metadata; an unpinned package would change from one set-up to the next."""
    todo, seen = [(r, "") for r in declared()], set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        unneeded = requirement.marker and not requirement.marker.evaluate({"extra": extra})
        if unneeded or name.startswith(RUNTIMES):
            continue
        for wanted in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, wanted))
            todo += [(Requirement(t), wanted) for t in importlib.metadata.requires(name) or ()]
    names = {name for name, _ in seen}
    assert len(names) > 50
    assert sorted(names - pins().keys()) == []


def test_python_is_the_same_everywhere():
    (python,) = (d for d in ENVIRONMENT["dependencies"] if str(d).startswith("python="))
    version = python.removeprefix("python=")
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)
    assert PROJECT["tool"]["mypy"]["python_version"] == version
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{version.replace('.', '')}"
    assert f"Python {version}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"python{version}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_environment_installs_the_project_under_the_pins_and_nothing_else():
    plain = [d.partition("=")[0] for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]
    (pip,) = (d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))
    assert plain == ["python", "pip"]
    assert pip == ["-c constraints.txt", "-e .[dev]"]


def test_makefile_takes_its_versions_from_the_constraints():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-c constraints.txt" in makefile
    assert "==" not in makefile


def test_aiter_is_never_a_dependency():
    assert NEVER.isdisjoint(canonicalize_name(r.name) for r in declared())
    assert NEVER.isdisjoint(pins())
    assert "aiter" not in (ROOT / "environment.yml").read_text(encoding="utf-8")
