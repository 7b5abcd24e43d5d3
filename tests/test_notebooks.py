"""What nbval does not see: pictures that survive an untrusted clone, size, skeleton, links."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook):
    return "\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{i:02}" for i in range(len(NOTEBOOKS))]


def test_every_picture_is_an_image_with_an_alternative_text(notebook):
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


def test_skeleton(notebook):
    text = prose(notebook)
    for part in ("*Time:*", "*You need:*", "**Map.**", "## Exercise", "## Recap"):
        assert part in text
    assert "import mlalab" in "".join(code_cells(notebook)[0]["source"])


def test_links_lead_somewhere(notebook):
    links = re.findall(r"\]\(([^)#]+)\)", prose(notebook))
    assert links
    for link in links:
        assert (FOLDER / link).exists(), link


def test_only_the_machine_report_is_not_compared(notebook):
    for cell in code_cells(notebook):
        if "nbval-ignore-output" in cell["metadata"].get("tags", []):
            assert "".join(cell["source"]) == "mlalab.report()"
