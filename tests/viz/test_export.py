"""The exported page: one file, no network, small, and safe with any name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

from mlalab.viz.export import trace_html
from mlalab.viz.page_data import trace_data
from tests.viz.samples import steps

HOSTILE = "</script><script>alert('\"&')</script><!--"
META = {"device": "cpu", "torch": "2.13"}


class Page(HTMLParser):
    """Elements of a page, and the text of its scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style"):
            self.texts.append((self.found[-1][0], data))


def packed(html: str) -> dict:
    data = re.search(r'id="trace">([^<]*)</script>', html)[1]
    return json.loads(zlib.decompress(base64.b64decode(data)))


def test_the_page_holds_every_step_once():
    trace = steps()
    data = packed(trace_html("tiny", trace, META))
    assert data["title"] == "tiny"
    assert data["meta"] == [["device", "cpu"], ["torch", "2.13"]]
    assert [step["name"] for step in data["steps"]] == [step.name for step in trace]
    assert len(data["pictures"]) == len(set(data["pictures"]))
    assert len(data["nodes"]) < sum(len(step.nodes) for step in trace)


def test_lines_are_the_graph_with_what_was_erased():
    data = trace_data("tiny", steps(), {})
    names = {data["nodes"][number][0]: state for number, state, _ in data["steps"][1]["lines"]}
    assert names["fused"] == "c"
    assert names["mul"] == "d"
    assert names["copy"] == "r"
    assert names["mm"] == "s"


def test_facts_show_check_matches_refusals_and_op_counts():
    facts = [step["facts"] for step in trace_data("tiny", steps(), {})["steps"]]
    assert "✓ equal" in facts[1]
    assert "10 nodes → 3" in facts[1]
    assert "<td>aten.mul</td><td>4</td><td>0</td><td>−4</td>" in facts[1]
    assert "mlalab.static_fp8_quant(getitem_3)" in facts[2]
    assert "aten.mm(getitem_3, permute_1)" in facts[2]
    assert "✗ differ" in facts[3]
    assert "3.12e-02" in facts[3]


def test_no_address_but_the_svg_namespace():
    html = trace_html("tiny", steps(), META)
    everything = html + json.dumps(packed(html))
    assert set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.\w+[^\"'\s\\]*", everything)) <= {
        "http://www.w3.org/2000/svg"
    }
    for tag, attributes in Page(html).found:
        assert tag not in ("link", "img", "iframe", "object")
        assert "src" not in attributes


def test_the_policy_allows_only_this_script_and_style():
    html = trace_html("tiny", steps(), META)
    page = Page(html)
    policy = next(a["content"] for t, a in page.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    texts = {"style": "", "module": ""}
    for kind, text in page.texts:
        texts["style" if kind == "style" else "module"] += (
            "" if kind == "script" and "{" not in text else text
        )
    for text in texts.values():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_hostile_names_stay_text():
    captured, fused, *_ = steps()
    nodes = tuple(
        replace(n, text=HOSTILE, source=HOSTILE) if n.op == "call_function" else n
        for n in captured.nodes
    )
    refusal = replace(steps()[2].refusals[0], reason=HOSTILE, found=HOSTILE, layer=HOSTILE)
    step = replace(captured, name=HOSTILE, nodes=nodes, note=HOSTILE, refusals=(refusal,))
    html = trace_html(HOSTILE, [step, fused], {HOSTILE: HOSTILE})
    scripts = [attributes.get("type") for tag, attributes in Page(html).found if tag == "script"]
    assert scripts == ["text/plain", "module"]
    for markup in (packed(html)["steps"][0][part] for part in ("chip", "facts")):
        assert "<script" not in markup
    assert packed(html)["steps"][0]["finding"].startswith(HOSTILE)


def test_without_scripts_the_table_is_there():
    assert (
        "RopeFusion"
        in re.search(r"<noscript><pre>(.*?)</pre>", trace_html("t", steps(), {}), re.S)[1]
    )


def test_the_page_is_deterministic():
    assert trace_html("tiny", steps(2), META) == trace_html("tiny", steps(2), META)


def test_eight_steps_of_110_nodes_stay_under_half_a_megabyte():
    trace = steps(4)
    trace = [replace(step, name=f"{step.name} {i}") for i in range(2) for step in trace]
    assert len(trace) == 8
    assert max(len(step.nodes) for step in trace) >= 110
    assert len(trace_html("tiny", trace, META).encode()) < 500_000


def test_an_empty_trace_still_makes_a_page():
    assert packed(trace_html("none", [], {}))["steps"] == []
