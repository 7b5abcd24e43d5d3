"""What nbval does not see: pictures that survive an untrusted clone, size, skeleton, links."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from mlalab.exercises import TOPICS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXERCISES = [path for path in NOTEBOOKS if path.stem.endswith("_exercises")]
SOLUTIONS = [path for path in NOTEBOOKS if path.stem.endswith("_solutions")]
LESSONS = [path for path in NOTEBOOKS if path not in EXERCISES + SOLUTIONS]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return read(request.param)


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return read(request.param)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook):
    return "\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )


def verdicts(path):
    """What each `check(...)` cell printed, in order."""
    cells = [c for c in code_cells(read(path)) if "check(" in "".join(c["source"])]
    outputs = [o for cell in cells for o in cell["outputs"]]
    return ["".join(o.get("text", o.get("data", {}).get("text/plain", []))) for o in outputs]


def test_lessons_are_numbered():
    assert [path.stem[:2] for path in LESSONS] == [f"{i:02}" for i in range(len(LESSONS))]


def test_every_lesson_with_exercises_has_all_three():
    lessons = {path.stem for path in LESSONS}
    assert {path.stem.removesuffix("_exercises") for path in EXERCISES} == {
        path.stem.removesuffix("_solutions") for path in SOLUTIONS
    }
    assert {path.stem.removesuffix("_exercises") for path in EXERCISES} <= lessons
    assert {f"{n}_{topic}" for n, topic in TOPICS.items()} == {
        path.stem.removesuffix("_exercises") for path in EXERCISES
    }


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_blanks_fail_with_one_sentence_and_solutions_pass(path):
    blanks = verdicts(path)
    solved = verdicts(path.with_name(path.name.replace("_exercises", "_solutions")))
    number = path.stem[:2]
    table = import_module(f"mlalab.exercises.{TOPICS[number]}").EXERCISES
    assert len(blanks) == len(solved) == len(table) >= 2
    for name, blank, right in zip(table, blanks, solved, strict=True):
        assert blank.startswith(f"{name}: not yet. ")
        assert "\n" not in blank.strip()
        assert right.startswith(f"{name}: right.")


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_every_exercise_has_two_hints(path):
    hints = len(re.findall(r"<details><summary>Hint", prose(read(path))))
    assert hints == 2 * len(verdicts(path))


def test_markdown_after_a_hint_is_rendered(notebook):
    # HTML ends at a blank line: what follows a hint without one is shown as it was typed.
    for cell in notebook["cells"]:
        assert not re.search(r"</details>(?!\n\n|\n<details>|\s*\Z)", "".join(cell["source"]))


def test_every_picture_is_an_image_with_an_alternative_text(lesson):
    notebook = lesson
    bundles = [o["data"] for c in code_cells(notebook) for o in c["outputs"] if "data" in o]
    pages = ["".join(bundle["text/html"]) for bundle in bundles if "text/html" in bundle]
    assert pages, "a notebook without a picture"
    for page in pages:
        assert re.fullmatch(
            r"<figure[^>]*><img [^>]*><figcaption>.*</figcaption></figure>", page, re.S
        )
        assert 'src="data:image/svg+xml;base64,' in page
        assert len(re.search(r'alt="([^"]*)"', page).group(1)) > 40
    assert all("text/plain" in bundle for bundle in bundles)


def test_cells_are_short_and_hold_no_setup(notebook):
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        assert len([line for line in source.splitlines() if line.strip()]) <= 10
        assert not re.search(r"sys\.path|^[!%]|https?://|pip install", source, re.M)


def test_skeleton(lesson):
    notebook, text = lesson, prose(lesson)
    for part in ("*Time:*", "*You need:*", "**Map.**", "## Exercise", "## Recap"):
        assert part in text
    assert "import mlalab" in "".join(code_cells(notebook)[0]["source"])


def test_links_lead_somewhere(notebook):
    links = re.findall(r"\]\(([^)#]+)\)", prose(notebook))
    assert links
    for link in links:
        assert (FOLDER / link).exists(), link


def test_a_lesson_goes_by_one_name(notebook):
    for name, stem in re.findall(r"\[(\d\d · [^\]]+)\]\((\d\d_\w+)\.ipynb\)", prose(notebook)):
        title = prose(read(FOLDER / f"{stem}.ipynb")).splitlines()[0]
        assert re.match(rf"# {re.escape(' '.join(name.split()))}(?=$|[:,])", title), name


def test_only_the_machine_report_is_not_compared(notebook):
    for cell in code_cells(notebook):
        if "nbval-ignore-output" in cell["metadata"].get("tags", []):
            assert "".join(cell["source"]) == "mlalab.report()"
