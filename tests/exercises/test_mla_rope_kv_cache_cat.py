"""The exercises on the fused RoPE and cache write: right answers pass, plausible ones do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mlalab
from mlalab.exercises import find
from mlalab.exercises import mla_rope_kv_cache_cat as topic
from mlalab.lab import record
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.teach import check
from mlalab_kernels.numerics import rotate
from tests.passes.models import attend, project, stand, write
from tests.passes.models import rotate as rotate_in


def turn(x, cos, sin, dtype=torch.float32):
    """Return `x`, its neighbours rotated."""
    wide, cos, sin = x.to(dtype), cos.to(dtype), sin.to(dtype)
    even, odd = wide[..., ::2], wide[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)


def written(positions, q_pe, k_pe, kv_c, table, cache, slots, dtype=torch.float32):
    cos, sin = table[positions].chunk(2, -1)
    q_pe[:] = turn(q_pe, cos[:, None], sin[:, None], dtype)
    k_pe[:] = turn(k_pe, cos, sin, dtype)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            cache[slot] = torch.cat((kv_c[token], k_pe[token]))


def rounds_each_step(*args):
    written(*args, dtype=args[1].dtype)


def forgets_minus_one(positions, q_pe, k_pe, kv_c, table, cache, slots):
    written(positions, q_pe, k_pe, kv_c, table, cache, slots[:0])
    cache[slots] = torch.cat((kv_c, k_pe), -1)[: len(slots)]


def rotates_cached_rows_only(positions, q_pe, k_pe, kv_c, table, cache, slots):
    used = len(slots)
    written(positions[:used], q_pe[:used], k_pe[:used], kv_c[:used], table, cache, slots)


def caches_the_old_key(positions, q_pe, k_pe, kv_c, table, cache, slots):
    old = k_pe.clone()
    written(positions, q_pe, k_pe, kv_c, table, cache, slots)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            cache[slot, topic.L :] = old[token]


def reads_what_it_has_written(positions, q_pe, k_pe, kv_c, table, cache, slots):
    cos, sin = table[positions].chunk(2, -1)
    for x, c, s in ((q_pe, cos[:, None], sin[:, None]), (k_pe, cos, sin)):
        x[..., ::2] = x[..., ::2] * c - x[..., 1::2] * s
        x[..., 1::2] = x[..., 1::2] * c + x[..., ::2] * s


def pairs_halves(positions, q_pe, k_pe, kv_c, table, cache, slots):
    cos, sin = table[positions].chunk(2, -1)
    q_pe[:] = rotate(q_pe, cos, sin, True, True)
    k_pe[:] = rotate(k_pe[:, None], cos, sin, True, True)[:, 0]


def returns_new_tensors(positions, q_pe, k_pe, kv_c, table, cache, slots):
    q_pe, k_pe = q_pe.clone(), k_pe.clone()
    written(positions, q_pe, k_pe, kv_c, table, cache, slots)


def walks_the_graph(reads, returns_key):
    """Look at the fused graph itself: does any node wait for its own result?"""
    inputs = set(reads["update"]) - {"k_rot"}
    seen = set()
    while inputs:
        name = inputs.pop()
        seen.add(name)
        inputs |= set(reads.get(name, ())) - seen
    others = any("k_rot" in i for n, i in reads.items() if n != "update")
    return "k_rot" in reads["update"] and "k_rot" not in seen and (returns_key or not others)


def knows_dtypes(rope, options):
    if rope.kind == "none":
        return None
    pair = ("gptj", "neox")[rope.is_neox]
    if options.rope_custom_op:
        return "custom op/" + pair
    kind = {"yarn": "deepseek_scaling", "default": "plain"}[rope.kind]
    dtypes = (options.dtype, options.rope_cache_dtype or options.dtype)
    if dtypes == (torch.float32, torch.float32):
        words = "fp32"
    else:
        table = "fp32" if dtypes[1] == torch.float32 else "half"
        words = f"half, {table} table"
        if not options.rope_in_fp32:
            words = "rounding each step" + ", fp32 table" * (table == "fp32")
    return f"{kind}/{pair} ({words})"


@pytest.mark.parametrize(
    ("name", "solution"),
    [("update", written), ("may_fuse", walks_the_graph), ("variant", knows_dtypes)],
)
def test_solutions_pass(name, solution):
    assert check(f"04.{name}", solution)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (rounds_each_step, "With bfloat16"),
        (forgets_minus_one, "With a slot of -1: the argument cache"),
        (rotates_cached_rows_only, "With 3 slots for 5 tokens: the argument q_pe"),
        (caches_the_old_key, "the argument cache"),
        (reads_what_it_has_written, "the argument q_pe"),
        (pairs_halves, "the argument q_pe"),
        (returns_new_tensors, "the argument q_pe"),
        (lambda *_: None, "With 1 token: the argument q_pe, afterwards, differs"),
        (lambda *_: ..., "blank"),
    ],
)
def test_wrong_updates_are_refused(attempt, words):
    verdict = check("04.update", attempt)
    assert not verdict
    assert words in repr(verdict)
    assert "\n" not in repr(verdict)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda reads, returns: returns, "nobody else reading the rotated key"),
        (lambda reads, returns: returns or not reads_twice(reads), "a key that is scaled"),
        (lambda reads, returns: True, "the layer of this notebook"),
        # Only direct inputs are looked at.
        (
            lambda reads, returns: (
                may_fuse_locally(reads, returns) and "k_rot" not in reads.get("kv_c", ())
            ),
            "by a detour",
        ),
        # Anything that runs before the update is held against it.
        (
            lambda reads, returns: (
                walks_the_graph(reads, returns) and list(reads)[1] in ("update", "k_rot")
            ),
            "a reader that runs before",
        ),
        (lambda reads, returns: ..., "blank"),
    ],
)
def test_wrong_decisions_are_refused(attempt, words):
    verdict = check("04.may_fuse", attempt)
    assert not verdict
    assert words in repr(verdict)


def reads_twice(reads):
    return sum("k_rot" in inputs for inputs in reads.values()) > 1


def may_fuse_locally(reads, returns_key):
    others = any("k_rot" in i for n, i in reads.items() if n not in ("update", "kv_c", "mean"))
    return "k_rot" in reads["update"] and (returns_key or not others)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda rope, options: knows_dtypes(replace(rope, kind="yarn"), options), "plain RoPE"),
        (lambda rope, options: knows_dtypes(rope, replace(options, rope_in_fp32=True)), "rounding"),
        (
            lambda rope, options: knows_dtypes(
                rope, replace(options, rope_cache_dtype=options.rope_cache_dtype or torch.float32)
            ),
            "a table like the layer",
        ),
        (lambda rope, options: ..., "blank"),
    ],
)
def test_wrong_variants_are_refused(attempt, words):
    verdict = check("04.variant", attempt)
    assert not verdict
    assert words in repr(verdict)


# Every third one, for a compilation takes a second.
@pytest.mark.parametrize("case", topic._LAYERS[::3], ids=lambda case: case().label)
def test_the_variant_is_the_one_that_the_pass_names(case):
    rope, options = case().args
    tiny = mlalab.preset("tiny")
    shape = replace(tiny, rope=replace(tiny.rope, kind=rope.kind, is_neox=rope.is_neox))
    step = mlalab.trace(shape, tokens=3, options=options)[MLARoPEKVCacheCatFusionPass.name]
    found = [match.variant for match in step.matches]
    assert found == [name for name in [topic.variant(rope, options)] if name is not None]


def mean(k_rot):
    return k_rot.mean((1, 2))[:, None]


# A graph of the exercise → latent and key that a layer caches, of (latent, key, rotated key).
AS_A_LAYER = {
    "the layer of this notebook": lambda kv_c, k_pe, k_rot: (kv_c, k_rot),
    "a key that is scaled before it is cached": lambda kv_c, k_pe, k_rot: (kv_c, k_rot * 2),
    "a latent that needs the rotated key": lambda kv_c, k_pe, k_rot: (kv_c * mean(k_rot), k_rot),
    "a latent that needs the key before its rotation": lambda kv_c, k_pe, k_rot: (
        kv_c * mean(k_pe),
        k_rot,
    ),
    "a cache that gets the key as it was": lambda kv_c, k_pe, k_rot: (kv_c, k_pe),
}


@pytest.mark.parametrize("label", AS_A_LAYER)
def test_the_pass_decides_as_the_exercise_does(label):
    def model(layers, positions, hidden):
        (layer,) = layers
        q, kv_c, k_pe = project(layer, hidden)
        k_rot = rotate_in(layer, positions, q, k_pe)
        latent, key = AS_A_LAYER[label](kv_c, k_pe, k_rot)
        return attend(layer, q, latent, k_rot, write(layer, latent, key))

    status = record(stand(model)).status_of(MLARoPEKVCacheCatFusionPass.name)
    assert (status == "applied") == topic.may_fuse(topic._GRAPHS[label], True)
    assert status in ("applied", "refused")


def test_each_exercise_is_found():
    for name in topic.EXERCISES:
        assert find(name) is topic.EXERCISES[name]
