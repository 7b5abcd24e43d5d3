"""Regions: never said to be apart when they share an element; the common cases are proved."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from mlalab.compile.config import PassConfig
from mlalab.lab import record
from mlalab.passes.aliasing import Region
from mlalab.passes.values import same
from mlalab.shapes import preset
from tests.passes.models import stand


def elements(view):
    """Offsets of a view's elements, by brute force."""
    spans = [
        range(0, size * stride, stride) if stride else [0]
        for size, stride in zip(view.shape, view.stride(), strict=True)
    ]
    return (
        {view.storage_offset() + sum(at) for at in itertools.product(*spans)}
        if view.numel()
        else set()
    )


def view_of(draw, base):
    view = base
    for dim in range(view.dim()):
        size = view.size(dim)
        start = draw(st.integers(0, size - 1)) if size else 0
        stop = draw(st.integers(start, size))
        view = view[(*[slice(None)] * dim, slice(start, stop, draw(st.integers(1, 3))))]
    return view.transpose(0, -1) if draw(st.booleans()) else view


@given(st.data())
def test_regions_are_never_wrongly_apart(data):
    base = torch.empty(data.draw(st.sampled_from([(4, 6), (3, 2, 5), (12,)])), dtype=torch.uint8)
    a, b = view_of(data.draw, base), view_of(data.draw, base)
    shared = bool(elements(a) & elements(b))
    apart = not Region.of(a).overlaps(Region.of(b))
    assert not (shared and apart)
    assert Region.of(a).overlaps(Region.of(b)) == Region.of(b).overlaps(Region.of(a))


@st.composite
def strided(draw, storage):
    """Any view of a storage at all, seen as any dtype."""
    dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.float32]))
    flat = storage.view(dtype)
    sizes = draw(st.lists(st.integers(0, 3), max_size=3))
    strides = draw(st.lists(st.integers(0, 6), min_size=len(sizes), max_size=len(sizes)))
    reach = sum(max(n - 1, 0) * stride for n, stride in zip(sizes, strides, strict=True))
    return flat.as_strided(sizes, strides, draw(st.integers(0, flat.numel() - 1 - reach)))


def bytes_of(view):
    unit = view.element_size()
    return {at * unit + byte for at in elements(view) for byte in range(unit)}


@settings(max_examples=200)
@given(st.data())
def test_any_two_views_are_never_wrongly_apart(data):
    storage = torch.empty(200, dtype=torch.uint8)
    a, b = data.draw(strided(storage)), data.draw(strided(storage))
    if bytes_of(a) & bytes_of(b):
        assert Region.of(a).overlaps(Region.of(b))
    if len(elements(a)) < a.numel():
        assert Region.of(a).self_overlapping


def test_symbolic_sizes_are_asked_nothing():
    """The rows are as many as the columns, and nobody may notice: it would become a guard."""
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    rows = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    x = mode.from_tensor(torch.empty(48, 48), symbolic_context=rows, source=ConstantSource("x"))
    q = x.view(-1, 2, 24)
    whole, turned, same_rows = Region.of(x), Region.of(x.mT), Region.of(q.view(-1, 48))
    nope, rope, other_head = (Region.of(v) for v in (q[..., :16], q[..., 16:], q[:, 1:]))
    head, first, rest = Region.of(x[:, :24]), Region.of(x[:3]), Region.of(x[3:])
    asked = len(env.guards)
    assert isinstance(q.shape[0], torch.SymInt)
    assert not any(a.overlaps(b) for a, b in ((nope, rope), (head, other_head), (first, rest)))
    assert whole.overlaps(turned) and rope.overlaps(other_head)
    assert whole.same_as(same_rows) and not whole.same_as(turned)
    assert not any(r.self_overlapping for r in (whole, turned, rope, rest))
    assert not same(x.shape, (48, 48))
    assert len(env.guards) == asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_the_columns_that_matter_are_proved_apart(dtype):
    query = torch.empty(5, 4, 24, dtype=dtype)
    assert not Region.of(query[..., :16]).overlaps(Region.of(query[..., 16:]))
    assert Region.of(query[..., :17]).overlaps(Region.of(query[..., 16:]))
    latent = torch.empty(5, 80, dtype=dtype)
    assert not Region.of(latent[:, :64]).overlaps(Region.of(latent[:, 64:].unsqueeze(1)))
    assert not Region.of(latent[:2]).overlaps(Region.of(latent[2:]))


def test_other_storage_and_empty_views_never_overlap():
    x = torch.empty(4, 4)
    assert not Region.of(x).overlaps(Region.of(torch.empty(4, 4)))
    assert not Region.of(x).overlaps(Region.of(x[:0]))
    assert Region.of(x).overlaps(Region.of(x.view(torch.int32)))


def test_expanded_and_unfolded_views_overlap_themselves():
    x = torch.empty(6)
    assert Region.of(x.expand(3, 6)).self_overlapping
    assert Region.of(x.unfold(0, 3, 1)).self_overlapping
    assert not Region.of(torch.empty(3, 6).mT[::2]).self_overlapping
    assert not Region.of(x[:1].expand(1, 1)).self_overlapping


def test_same_place_needs_the_same_layout():
    x = torch.empty(4, 6)
    assert Region.of(x[:, 2:]).same_as(Region.of(x[:, 2:]))
    assert not Region.of(x[:, 2:]).same_as(Region.of(x[:, 1:5]))
    assert not Region.of(x).same_as(Region.of(x.view(6, 4)))


def joined_and_split_again(layers, positions, hidden):
    """Inductor hands `q` and `k` back for the pieces, and records them as memory of the `cat`."""
    (layer,) = layers
    shape = layer.shape
    sizes = [shape.q_size, shape.kv_size, shape.kv_size]
    q, k, v = layer.qkv_proj(hidden).split(sizes, dim=-1)
    again = torch.cat((q, k), -1).split(sizes[:2], -1)
    q_rot, k_rot = layer.rotary_emb(positions, *again)
    heads = [x.unflatten(-1, (-1, shape.head_dim)) for x in (q_rot, k_rot, v)]
    dummy = torch.ops.mlalab.unified_kv_cache_update(*heads[1:], layer.layer_name)
    output = q.new_empty((q.size(0), shape.q_size))
    torch.ops.mlalab.unified_attention_with_output(*heads, output, layer.layer_name, dummy)
    return output, k.exp()


def test_what_inductor_will_expand_may_hand_back_what_it_is_given():
    bench = stand(joined_and_split_again, shape=preset("tiny-gqa"))
    trace = record(bench, config=PassConfig(fuse_rope_kvcache=True)).check()
    assert len(trace["RopeKVCacheFusionPass"].matches) == 1
    assert any("cat_splitwithsizes" in node.name for node in trace["RopeKVCacheFusionPass"].nodes)
    assert trace.ok, trace
