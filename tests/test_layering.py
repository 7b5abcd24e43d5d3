"""The import arrows of the architecture: who may know whom, and what `import mlalab` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What a group of files must never import, and why.
FORBIDDEN = [
    # Drawing works from records alone, so that a saved trace can be drawn anywhere.
    ("mlalab/viz/**/*.py", ("mlalab.passes", "mlalab.compile"), ()),
    # Of sweeps and benchmarks a picture takes the records; nothing runs because it is drawn.
    (
        "mlalab/viz/**/*.py",
        ("mlalab.sweeps", "mlalab.bench"),
        (
            "mlalab.sweeps.spec",
            "mlalab.bench.cells",
            "mlalab.bench.records",
            "mlalab.bench.roofline",
        ),
    ),
    # A pass knows nothing of how it is shown.
    ("mlalab/passes/**/*.py", ("mlalab.viz",), ()),
    # Traces are read in terminals and CI as well as in notebooks.
    ("mlalab/records.py", ("IPython",), ()),
    ("mlalab/trace*.py", ("IPython",), ()),
    # Kernels can be lifted out: of mlalab they know only the axis letters and sizes.
    ("kernels/mlalab_kernels/**/*.py", ("mlalab",), ("mlalab.shapes",)),
]

# Each costs between 0.1 and 2 s, or is a development dependency; loaded on first use.
HEAVY = (
    "IPython",
    "anywidget",
    "ipywidgets",
    "matplotlib.pyplot",
    "torch._inductor.pattern_matcher",
    "transformers",
)


def imported_names(source: str, package: str) -> set[str]:
    """Return every dotted name that `source`, a file of `package`, imports at any level."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from a import b` may import the module a.b, so a.b is what is judged.
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return names


def package_of(file: Path) -> str:
    parts = file.relative_to(ROOT).parent.parts
    return ".".join(parts[1:] if parts[0] == "kernels" else parts)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


@pytest.mark.parametrize(
    "line",
    [
        "import mlalab.passes.driver",
        "from mlalab import passes",
        "from mlalab.passes import driver as d",
        "from ..passes.driver import run",
        "from .. import passes",
        "def f():\n    from mlalab.passes import driver",
        "importlib.import_module('mlalab.passes')",
    ],
)
def test_every_form_of_import_is_seen(line):
    assert any(within(n, ("mlalab.passes",)) for n in imported_names(line, "mlalab.viz"))


def test_similar_names_are_not_confused():
    assert not within("mlalab.passes_of_time", ("mlalab.passes",))
    assert not within("mlalab_kernels.numerics", ("mlalab",))


@pytest.mark.parametrize(("files", "forbidden", "allowed"), FORBIDDEN, ids=lambda v: str(v)[:40])
def test_import_arrows(files, forbidden, allowed):
    paths = sorted(ROOT.glob(files))
    assert paths, f"no file matches {files}: the rule would hold of nothing"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imported_names(path.read_text(encoding="utf-8"), package_of(path))
        if within(name, forbidden) and not within(name, allowed)
    ]
    assert not wrong, ", ".join(wrong)


def test_import_mlalab_is_light():
    code = (
        "import sys, mlalab; assert mlalab.__file__, 'mlalab/__init__.py is missing';"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_heavy_modules_exist():
    """A renamed module would make the test above pass whatever mlalab imports."""
    code = f"import importlib.util as u; print([n for n in {HEAVY!r} if not u.find_spec(n)])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
