"""Which graph serves which batch, and that every batch gets the right result from it."""

import pytest
import torch

from mlalab.compile import dispatch, inductor
from mlalab.compile.config import PassConfig
from mlalab.context import make_batch
from mlalab.errors import ConfigError, ContextError, InputError
from tests.compile.batches import BLOCK, compiled, decode, flags, mixed, model, prefill, run
from tests.passes.models import assert_same

BATCHES = {
    "decode": decode(4),
    "decode, all sequences": decode(8),
    "one request": decode(1),
    "prefill of one token": prefill(1),
    "prefill inside the bound": prefill(5),
    "mixed inside the bound": mixed(2, 4),
    "decode of unlike lengths": make_batch([1, 2], [3, 3], num_decodes=2, block_size=BLOCK),
    "beyond the bound": prefill(20),
    "a decode request too many": decode(9),
    "nothing": decode(0),
}
SERVED = {
    "graph": ["general 1..8", "general 9..64", "decode 1..8"],
    # Without passes there is no bound to cut at: a layer is asked by kind alone.
    "layer": ["general 1..64", "decode 1..64"],
}
SERVED_BY_DECODE = {"decode", "decode, all sequences", "one request"}


def keys(model):
    return [str(key) for key in sorted(model.entries)]


@pytest.mark.parametrize("fusion", ["graph", "layer"])
@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache_dtype": "fp8", "dtype": torch.bfloat16},
        {"rope_custom_op": True},
        {"rope_in_fp32": False, "dtype": torch.float16},
    ],
    ids=["fp8", "custom op", "fp16"],
)
def test_every_batch_gets_what_eager_mode_gives(options, fusion):
    # Two layers alike, once: that every layer gets its own is not a question of dtypes.
    names = ("tiny", "tiny-gqa", *(["tiny"] if "kv_cache_dtype" in options else []))
    eager = model(*names, **options)
    other = model(*names, fusion=fusion, **options)
    fused = compiled(other)
    for batch in BATCHES.values():
        expected = run(eager, list(eager.layers), batch)
        assert_same(expected, run(fused, list(other.layers), batch))
        # What is called directly is fused too when the layer does it.
        assert_same(expected, run(other, list(other.layers), batch))
    assert keys(fused) == ["general 0", *SERVED[fusion]]


def test_padded_rows_change_nothing():
    module = model("tiny", kv_cache_dtype="fp8")
    fused = compiled(module)
    layers = list(module.layers)
    for batch in (decode(3), mixed(1, 2), prefill(3)):
        expected = run(module, layers, batch, rows=7)
        assert_same(expected, run(fused, layers, batch, rows=7))


class AskedError(Exception):
    """For this graph; compiling it is another test's."""


@pytest.mark.parametrize("name", BATCHES)
def test_only_uniform_decode_batches_are_served_by_the_decode_graph(name, monkeypatch):
    def asked(model, key, *inputs):
        raise AskedError(str(key))

    monkeypatch.setattr(dispatch.CompiledModel, "_compile", asked)
    module = model("tiny")
    kind = "decode" if name in SERVED_BY_DECODE else "general"
    with pytest.raises(AskedError, match=rf"^{kind} "):
        run(compiled(module), list(module.layers), BATCHES[name])


def test_speculative_tokens_count():
    module = model("tiny")
    fused = compiled(module, num_speculative_tokens=2, max_num_seqs=4)
    layers = list(module.layers)
    for batch, served in ((decode(4, 3), "decode 1..12"), (decode(4), "general 1..12")):
        assert_same(run(module, layers, batch), run(fused, layers, batch))
        assert served in keys(fused)


def test_a_profile_run_is_served_and_writes_nothing():
    module = model("tiny")
    fused, layers = compiled(module), list(module.layers)
    found = run(fused, layers, None, rows=4)
    assert keys(fused) == ["general 1..8"]
    assert_same(run(module, layers, None, rows=4), found)


def final_graphs(monkeypatch, module, batch, **settings):
    """Return the final graph of each compilation that serving `batch` takes, as text."""
    texts, run_post_grad = [], inductor.run_post_grad

    def recorded(gm, inputs):
        interpreted = run_post_grad(gm, inputs)
        texts.append(str(gm.graph))
        return interpreted

    monkeypatch.setattr(inductor, "run_post_grad", recorded)
    run(compiled(module, **settings), list(module.layers), batch)
    monkeypatch.undo()
    return texts


@pytest.mark.parametrize(
    "name", ["mixed inside the bound", "beyond the bound", "a decode request too many", "nothing"]
)
def test_every_other_graph_is_that_of_flag_off(name, monkeypatch):
    batch, module = BATCHES[name], model("tiny", "tiny-gqa")
    on = final_graphs(monkeypatch, module, batch, pass_config=flags(module))
    off = final_graphs(monkeypatch, module, batch, pass_config=flags(module, aiter=False))
    assert len(on) == 1 and on == off


def test_the_decode_graph_is_another(monkeypatch):
    module = model("tiny")
    on = final_graphs(monkeypatch, module, decode(4), pass_config=flags(module))
    off = final_graphs(monkeypatch, module, decode(4), pass_config=flags(module, aiter=False))
    assert on != off and "fused_aiter" in on[0] and "fused_aiter" not in off[0]


def test_without_a_decode_only_pass_decode_batches_share_the_general_graph():
    module = model("tiny")
    fused = compiled(module, pass_config=PassConfig())
    for batch in (decode(3), prefill(3)):
        run(fused, list(module.layers), batch)
    assert keys(fused) == ["general 1..64"]


def test_exact_sizes_win_and_nothing_is_compiled_twice():
    module = model("tiny")
    fused = compiled(
        module,
        pass_config=PassConfig(),
        compile_sizes=(16, 32, 1),
        compile_ranges_endpoints=(8, 32),
    )
    layers = list(module.layers)
    for tokens in (1, 2, 8, 9, 16, 32, 33, 64, 16, 7):
        batch = prefill(tokens)
        assert_same(run(module, layers, batch), run(fused, layers, batch))
    run(fused, layers, decode(0))
    served = ("0", "1", "1..8", "9..32", "16", "32", "33..64")
    assert keys(fused) == [f"general {x}" for x in served]


def test_a_batch_outside_all_ranges_is_refused_clearly():
    module = model("tiny")
    fused = compiled(module)
    with pytest.raises(InputError, match=r"65 tokens.*end at 64; raise max_num_batched_tokens"):
        run(fused, list(module.layers), prefill(65))
    assert_same(*(run(f, list(module.layers), prefill(64)) for f in (module, fused)))


def test_without_a_forward_context_it_says_so():
    with pytest.raises(ContextError, match="forward context"):
        compiled(model("tiny"))(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 64))


def test_warm_up_compiles_everything_and_writes_no_cache():
    module = model("tiny")
    fused = compiled(module, compile_sizes=(4,))
    before = module.layers[0].kv_cache.storage.clone()
    fused.warm_up()
    assert torch.equal(before, module.layers[0].kv_cache.storage)
    warm = keys(fused)
    assert warm == ["general 1..8", "general 4", "general 9..64", "decode 1..8", "decode 4"]
    for batch in BATCHES.values():
        run(fused, list(module.layers), batch)
    assert keys(fused) == ["general 0", *warm]


@pytest.mark.parametrize(
    ("mode", "batches"), [("display", (prefill(3), decode(0))), ("inductor", (decode(0),))]
)
def test_an_empty_batch_is_served_when_every_op_is_left_functional(mode, batches):
    module = model("tiny", "tiny-gqa", rope_custom_op=True)
    plain = compiled(module, level="O0", pass_config=PassConfig(), mode=mode, cache=False)
    layers = list(module.layers)
    for batch in batches:
        assert run(plain, layers, batch)["output"].shape == (batch.num_tokens, 64)


def test_weights_changed_in_place_count():
    module = model("tiny")
    fused, layers = compiled(module), list(module.layers)
    run(fused, layers, decode(2))
    with torch.no_grad():
        module.layers[0].o_proj.weight.mul_(2)
    assert_same(run(module, layers, decode(2)), run(fused, layers, decode(2)))


def test_after_reset_replaced_weights_count():
    module = model("tiny")
    fused, layers = compiled(module), list(module.layers)
    run(fused, layers, decode(2))
    weight = module.layers[0].o_proj.weight
    module.layers[0].o_proj.weight = torch.nn.Parameter(weight * 2, requires_grad=False)
    fused.reset()
    assert_same(run(module, layers, decode(2)), run(fused, layers, decode(2)))


def test_the_callers_tensors_are_not_marked():
    module = model("tiny")
    hidden = []
    fused = compiled(module)
    run(lambda p, h: hidden.append(h) or fused(p, h), list(module.layers), decode(2))
    assert not [x for x in vars(hidden[0]) if "dynamo" in x]


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match="no attention layer"):
        compiled(torch.nn.Linear(2, 2))


def test_gates_say_beforehand_what_runs():
    fused = compiled(model("tiny"))
    decode_key, general_key = (fused.key_for(8, kind) for kind in ("decode", "general"))
    name = "MLADecodeQPrepLiftPass"
    assert fused.gates(decode_key)[name] == "applied"
    assert fused.gates(general_key)[name] == "not decode only"
    beyond = dispatch.GraphKey("decode", fused.key_for(9, "decode").served)
    assert fused.gates(beyond)[name] == "out of range"
    assert set(fused.gates(beyond)) == {p.name for p in fused.passes}
    assert fused.entries == {}
