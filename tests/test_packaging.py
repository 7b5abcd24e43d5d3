"""The two source roots: importable beside Hugging Face's `kernels`, and complete in the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, cwd: Path, path: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(path)} if path else None
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """A folder that holds a regular package called `kernels`, as an installed one would."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("get_kernel = 'the real one'\n", encoding="utf-8")
    return package.parent


IMPORT_BOTH = "import kernels, mlalab_kernels.numerics; print(kernels.get_kernel)"


# A shell, a REPL and `python -m pytest` start with the working directory first on the path.
@pytest.mark.parametrize("cwd", ["", "notebooks", "kernels"])
def test_kernels_folder_does_not_shadow_hugging_face(cwd, hugging_face):
    assert python(IMPORT_BOTH, ROOT / cwd, hugging_face) == "the real one"


def test_an_init_file_in_kernels_would_shadow_it(hugging_face, tmp_path):
    """Shows that the test above can fail."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    assert not (ROOT / "kernels" / "__init__.py").exists()
    found = python("import kernels; print(kernels.__file__)", tmp_path, hugging_face)
    assert Path(found).parent == tmp_path / "kernels"


def sources() -> set[str]:
    """Return what the wheel must hold: every module of both roots, and the package data."""
    modules = {p.relative_to(ROOT) for p in (ROOT / "mlalab").rglob("*.py")}
    kernels = {p.relative_to(ROOT / "kernels") for p in (ROOT / "kernels").rglob("*.py")}
    beside = {
        p.relative_to(ROOT / "kernels")
        for name in ("README.md", "tuning.json")
        for p in (ROOT / "kernels" / "mlalab_kernels").glob(f"*/{name}")
    }
    folders = ("mlalab/viz/static", "mlalab/bench/recorded")
    static = {p.relative_to(ROOT) for f in folders for p in (ROOT / f).glob("*") if p.is_file()}
    return {p.as_posix() for p in (*modules, *kernels, *beside, *static, Path("mlalab/py.typed"))}


def test_wheel_holds_both_roots_and_nothing_else(tmp_path):
    # Built from a copy: the build leaves folders behind, and other tests read the tree meanwhile.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("mlalab", "kernels", "tests", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    # The build back end itself, without pip: nothing to download, nothing to isolate.
    code = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    wheel = copy / "dist" / python(code, copy).splitlines()[-1]
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {n for n in names if n.partition("/")[0].endswith(".dist-info")}
    assert any(n.endswith("/licenses/LICENSE") for n in metadata)
    assert names - metadata == sources()
    assert any(n.startswith("mlalab_kernels/") for n in names)
