"""A small MLA layer as records, written as printed graphs, so that viz tests need no compiler.

A line is `name = target(inputs) [shape] [view] [writes buffers]`; without a `=` it is an input.
"""

from __future__ import annotations

import re

from mlalab.records import (
    CheckRecord,
    MatchRecord,
    NodeRecord,
    PatternRecord,
    Refusal,
    StepKind,
    StepRecord,
    TensorDiff,
)

LAYER = "model.layers.{}.self_attn"
INPUTS = "x 8x64, positions 8, cos_sin 512x16, w_qkv 272x64, w_o 64x128"

PROJECTIONS = """
permute = aten.permute(w_qkv) 64x272 view
mm = aten.mm(x, permute) 8x272
split = aten.split_with_sizes(mm) - view
getitem = getitem(split) 8x192 view
getitem_1 = getitem(split) 8x64 view
getitem_2 = getitem(split) 8x16 view
view = aten.reshape(getitem) 8x4x48 view
slice_1 = aten.slice(view) 8x4x16 view
unsqueeze = aten.unsqueeze(getitem_2) 8x1x16 view
"""
OUTPUT = """
permute_1 = aten.permute(w_o) 128x64 view
mm_1 = aten.mm({attention}, permute_1) 8x64
add_2 = aten.add(x, mm_1) 8x64
"""
CAPTURED = f"""
{PROJECTIONS}
index = aten.index(cos_sin, positions) 8x16
mul = aten.mul(slice_1, index) 8x4x16
neg = aten.neg(slice_1) 8x4x16
mul_1 = aten.mul(neg, index) 8x4x16
add = aten.add(mul, mul_1) 8x4x16
mul_2 = aten.mul(unsqueeze, index) 8x1x16
neg_1 = aten.neg(unsqueeze) 8x1x16
mul_3 = aten.mul(neg_1, index) 8x1x16
add_1 = aten.add(mul_2, mul_3) 8x1x16
squeeze = aten.squeeze(add_1) 8x16 view
slice_2 = aten.slice(view) 8x4x16 view
copy = aten.copy(slice_2, add) 8x4x16
slice_scatter = aten.slice_scatter(view, copy) 8x4x48
update = mlalab.unified_mla_kv_cache_update(getitem_1, squeeze) 0
empty = aten.empty() 8x128
attention = auto_functionalized(mlalab.unified_mla_attention)(slice_scatter, empty, update) -
getitem_3 = getitem(attention) 8x128 view
{OUTPUT.format(attention="getitem_3")}
"""
FUSED = f"""
{PROJECTIONS}
fused = auto_functionalized(mlalab.fused_rope_update)(slice_1, unsqueeze, positions, cos_sin) -
getitem_4 = getitem(fused) 0 view
getitem_5 = getitem(fused) 8x4x16 view
slice_2 = aten.slice(view) 8x4x16 view
copy = aten.copy(slice_2, getitem_5) 8x4x16
slice_scatter = aten.slice_scatter(view, copy) 8x4x48
empty = aten.empty() 8x128
attention = auto_functionalized(mlalab.unified_mla_attention)(slice_scatter, empty, getitem_4) -
getitem_3 = getitem(attention) 8x128 view
{OUTPUT.format(attention="getitem_3")}
"""
IN_PLACE = f"""
{PROJECTIONS}
fused_1 = mlalab.fused_rope_update(slice_1, unsqueeze, positions, cos_sin) 0 writes slice_1
empty = aten.empty() 8x128
attention_1 = mlalab.unified_mla_attention(view, empty, fused_1) - writes empty
{OUTPUT.format(attention="empty")}
"""

_LINE = re.compile(r"(\w+) = (.+)\(([^()]*)\) (\S+)( view)?(?: writes (.+))?")


def graph(text: str, layers: int = 1) -> tuple[NodeRecord, ...]:
    """Parse `text`, once per layer; every layer but the first reads the one before it."""
    nodes = [_input(item) for item in INPUTS.split(", ")]
    last = "x"
    for layer in range(layers):
        end = f"_L{layer}" if layer else ""
        known = {node.name: node.name for node in nodes[:5]} | {"x": last}
        for line in filter(None, text.splitlines()):
            node = _node(line, known, end, LAYER.format(layer), nodes)
            known[node.name.removesuffix(end)] = node.name
            nodes.append(node)
        last = nodes[-1].name
    output = NodeRecord(
        name="output", op="output", target="output", text=f"return {last}", inputs=(last,), users=0
    )
    return (*nodes, output)


def step(
    name: str,
    kind: StepKind,
    text: str,
    before: StepRecord | None = None,
    layers: int = 1,
    **extra: object,
) -> StepRecord:
    """A step whose graph is `text`; its diff against `before` goes by node name."""
    nodes = graph(text, layers)
    old = {node.name: node for node in before.nodes} if before else {}
    new = {node.name: node for node in nodes}
    return StepRecord(
        name=name,
        kind=kind,
        status="applied" if before else "captured",
        nodes=nodes,
        created=tuple(n for n in new if before and n not in old),
        erased=tuple(n for n in old if n not in new),
        rewired=tuple(n for n in new if n in old and new[n].inputs != old[n].inputs),
        **extra,
    )


def steps(layers: int = 1) -> list[StepRecord]:
    """Capture, fusion, a fusion that does not match, and the return to in-place ops."""
    layer = LAYER.format(0)
    captured = step("aot", "capture", CAPTURED, layers=layers)
    gone = ("index", "mul", "neg", "mul_1", "add", "mul_2", "neg_1", "mul_3", "add_1", "update")
    match = MatchRecord(
        layer=layer,
        variant="deepseek_scaling/gptj",
        matched=gone,
        created=("fused", "getitem_4", "getitem_5"),
    )
    equal = TensorDiff(name="output 0", equal=True, max_abs=0.0, mismatched=0, total=512)
    off = TensorDiff(name=f"cache {layer}", equal=False, max_abs=0.03125, mismatched=12, total=9216)
    fused = step(
        *("RopeFusion", "fusion", FUSED, captured, layers),
        matches=(match,),
        check=CheckRecord(diffs=(equal,)),
        note="RoPE and the cache write become one op.",
    )
    refusal = Refusal(
        node="getitem_3",
        layer=layer,
        reason="The attention output is read by aten.mm, not by a quantisation op.",
        expected="mlalab.static_fp8_quant(getitem_3)",
        found="aten.mm(getitem_3, permute_1)",
        variant="static_fp8",
    )
    missed = StepRecord(
        name="QuantFusion",
        kind="fusion",
        status="no match",
        nodes=fused.nodes,
        refusals=(refusal,),
    )
    check = CheckRecord(diffs=(equal, off))
    in_place = step("FixFunctionalization", "cleanup", IN_PLACE, missed, layers, check=check)
    return [captured, fused, missed, in_place]


PATTERN = """
slice = aten.slice(x) 8x16 view
mul = aten.mul(slice, cos_sin) 8x16
neg = aten.neg(x) 8x16
add = aten.add(mul, neg) 8x16
update = mlalab.unified_mla_kv_cache_update(w_qkv, add) 0
"""


def refused(layers: int = 1, failed: str | None = "mul") -> list[StepRecord]:
    """Capture, and a fusion of which the same node differs in every layer."""
    captured = step("aot", "capture", CAPTURED, layers=layers)
    ends = ["", *(f"_L{layer}" for layer in range(1, layers))]
    differs = "expected aten.mul, found aten.neg at neg_1"
    refusals = tuple(
        Refusal(
            node=f"update{end}",
            layer=LAYER.format(layer),
            reason=f"{differs}{end}" if failed else f"its input mm{end} depends on a result",
            expected="aten.mul" if failed else None,
            found="aten.neg" if failed else None,
            variant="plain/neox",
            pattern=0,
            agreed=("w_qkv", "add", "update"),
            failed=failed,
            at=f"neg_1{end}" if failed else None,
        )
        for layer, end in enumerate(ends)
    )
    missed = StepRecord(
        name="RopeFusion",
        kind="fusion",
        status="refused",
        nodes=captured.nodes,
        refusals=refusals,
        patterns=(PatternRecord(name="plain/neox", source="fusion.py:38", nodes=graph(PATTERN)),),
    )
    return [captured, missed]


def _input(item: str) -> NodeRecord:
    name, shape = item.split()
    text = f"{name} = placeholder"
    return NodeRecord(
        name=name,
        op="placeholder",
        target="placeholder",
        text=text,
        inputs=(),
        users=1,
        **_of(shape),
    )


def _node(
    line: str, known: dict[str, str], end: str, layer: str, before: list[NodeRecord]
) -> NodeRecord:
    name, target, inputs, shape, view, writes = _LINE.fullmatch(line).groups()
    read = tuple(known[n] for n in filter(None, inputs.split(", ")))
    roots = {x.name: x.alias_of or (x.name if x.shape else None) for x in before}
    return NodeRecord(
        name=name + end,
        op="call_function",
        target=target,
        text=f"{name}{end} = {target}({', '.join(read)})",
        inputs=read,
        users=1,
        alias_of=roots[read[0]] if view else None,
        mutates=tuple(known[n] for n in (writes or "").split()),
        source=f"mla.py:{len(before)}, {name} = ...",
        layer=layer,
        plumbing=bool(view),
        **_of(shape),
    )


def _of(shape: str) -> dict[str, object]:
    if shape == "-":
        return {}
    dims = tuple(map(int, shape.split("x")))
    stride = [1]
    for dim in dims[:0:-1]:
        stride.insert(0, stride[0] * dim)
    size = 2 * dims[0] * stride[0]
    return {"shape": dims, "stride": tuple(stride), "dtype": "bfloat16", "bytes": size}
