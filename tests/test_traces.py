"""A trace prints, indexes, explains, checks, saves and loads."""

import json
import subprocess
import sys

import pytest

import mlalab
from mlalab.errors import TraceError
from mlalab.traces import Trace

FUSION = "MLARoPEKVCacheCatFusionPass"
FIX = "FixFunctionalizationPass"


@pytest.fixture(scope="module")
def trace():
    return mlalab.trace("tiny", tokens=5).check()


def test_text_form_is_deterministic(trace, golden):
    golden("trace_tiny", f"{trace!r}\n\n{trace.delta(FUSION)}\n\n{trace.delta(FIX)}\n")


def test_steps_are_found_by_position_and_by_name(trace):
    assert trace[0].name == "dynamo"
    assert trace[FUSION] is trace[2]
    assert trace.before(FUSION) is trace[1]
    assert [step.name for step in trace] == ["dynamo", "aot", FUSION, FIX]
    assert len(trace) == 4


@pytest.mark.parametrize(
    "use", [lambda t: t["nope"], lambda t: t.why("nope"), lambda t: t.delta("nope")]
)
def test_unknown_step_names_the_known_ones(trace, use):
    with pytest.raises(TraceError, match=f"no step 'nope'.*dynamo.*{FUSION}"):
        use(trace)


def test_first_step_has_none_before(trace):
    with pytest.raises(TraceError, match="no graph before"):
        trace.before("dynamo")


def test_check_compares_outputs_caches_and_inputs(trace):
    names = [diff.name for diff in trace[FUSION].check.diffs]
    assert names == [
        "output 0",
        "cache model.layers.0.self_attn",
        "input positions",
        "input hidden",
        "weights and tables",
    ]
    assert trace.ok
    assert all(diff.total > 0 for step in trace for diff in step.check.diffs)


def test_checking_again_with_another_seed_draws_other_inputs():
    trace = mlalab.trace("tiny", tokens=3)
    assert not trace.ok, "an unchecked trace must not count as proved"
    bench = trace._checker.bench
    first = bench.hidden_TD.clone()
    assert trace.check(seed=2).ok
    assert not bench.hidden_TD.equal(first)


def test_why_says_what_happened(trace):
    assert "matched 1 place" in trace.why(FUSION)
    off = mlalab.trace("tiny", tokens=3, level="O0")
    assert "switched off" in off.why(FUSION)
    nope = mlalab.preset("tiny", rope=mlalab.shapes.RopeSpec(kind="none"))
    assert "expected" in mlalab.trace(nope, tokens=3).why(FUSION)


def test_saved_trace_loads_equal_and_cannot_be_checked(trace, tmp_path):
    path = tmp_path / "t.json"
    trace.save(path)
    loaded = Trace.load(path)
    assert loaded.steps == trace.steps
    assert (loaded.title, loaded.meta) == (trace.title, trace.meta)
    assert repr(loaded) == repr(trace)
    with pytest.raises(TraceError, match="record it again"):
        loaded.check()


def test_loading_needs_no_torch(trace, tmp_path):
    path = tmp_path / "t.json"
    trace.save(path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mlalab.traces import Trace; t = Trace.load(sys.argv[1]); print(t); t.to_html()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr(trace)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not a trace"),
        ('{"format": "other"}', "has format 'other'"),
        (
            '{"format": "mlalab-trace-2"}',
            "format 'mlalab-trace-2'; this mlalab reads 'mlalab-trace-3'",
        ),
        ('{"format": "mlalab-trace-3"}', "is not a trace"),
        ("[]", "is not a trace"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        Trace.load(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(TraceError, match="Cannot read"):
        Trace.load(tmp_path / "none.json")


def test_failed_write_leaves_the_old_file(trace, tmp_path):
    path = tmp_path / "t.json"
    path.write_text("old")
    (tmp_path / "t.json.part").mkdir()
    with pytest.raises(TraceError, match="Cannot write"):
        trace.save(path)
    assert path.read_text() == "old"


def test_html_holds_the_whole_trace_and_no_address(trace, tmp_path):
    page = trace.to_html(tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text() == page
    assert FUSION in page
    assert len(page) < 500_000
    assert json.dumps(trace.title)[1:-1] in page
