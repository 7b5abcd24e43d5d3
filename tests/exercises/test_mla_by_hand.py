"""The exercises on MLA accept what is right in any form, and refuse what is nearly right."""

from __future__ import annotations

import pytest
import torch

from mlalab.exercises.mla_by_hand import EXERCISES
from mlalab.shapes import preset
from mlalab.teach import check


def pairs(x, cos, sin):
    x, cos, sin = x.float(), cos[:, None], sin[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def halves(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def three_roundings(x, cos, sin):
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def rotated_in_place(x, cos, sin):
    x.copy_(pairs(x, cos, sin))
    return x


def write(cache, slots, kv_c, k_pe):
    kept = slots >= 0
    rows = torch.cat((kv_c, k_pe), dim=-1)[: len(slots)]
    cache[slots[kept]] = rows[kept]


def write_padding(cache, slots, kv_c, k_pe):
    cache[slots] = torch.cat((kv_c, k_pe), dim=-1)[: len(slots)]


def write_whole_batch(cache, slots, kv_c, k_pe):
    kept = slots >= 0
    cache[slots[kept]] = torch.cat((kv_c, k_pe), dim=-1)[kept]


def write_parts(cache, slots, kv_c, k_pe):
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            cache[slot, : kv_c.size(1)] = kv_c[i]
            cache[slot, kv_c.size(1) :] = k_pe[i]


def write_copy(cache, slots, kv_c, k_pe):
    write(cache.clone(), slots, kv_c, k_pe)


TOKEN = 576 * 2 * 61


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("01.absorb", lambda q, w: torch.einsum("tnp,npl->tnl", q, w)),
        ("01.absorb", lambda q, w: torch.bmm(q.transpose(0, 1), w).transpose(0, 1)),
        ("01.rotate", lambda x, cos, sin: pairs(x, cos, sin).to(x.dtype)),
        ("01.write_rows", write),
        ("01.bytes", TOKEN),
    ],
)
def test_right_answers_pass(name, attempt):
    assert repr(check(name, attempt)).startswith(f"{name}: right.")


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("01.absorb", lambda q, w: torch.einsum("tnp,npl->tl", q, w), "tensor [3, 4, 5]"),
        ("01.absorb", lambda q, w: torch.einsum("tnp,npl->ntl", q, w), "[3, 4, 5]"),
        ("01.absorb", lambda q, w: torch.einsum("tnp,mpl->tnl", q, w), "the result differs"),
        ("01.rotate", pairs, "bfloat16"),
        ("01.rotate", halves, "the result differs"),
        ("01.rotate", three_roundings, "With 5 bfloat16 tokens: the result differs"),
        ("01.rotate", rotated_in_place, "the argument x_TNR"),
        ("01.write_rows", write_padding, "With slots of -1: the argument cache_SC"),
        ("01.write_rows", write_whole_batch, "With a slot mapping shorter"),
        ("01.write_rows", write_parts, "rows that move within the cache"),
        ("01.write_rows", write_copy, "With 3 tokens: the argument cache_SC"),
        ("01.write_rows", lambda *_: ..., "blank"),
        ("01.bytes", TOKEN // 61, "one layer"),
        ("01.bytes", TOKEN // 2, "2 bytes"),
        ("01.bytes", 512 * 2 * 61, "rotated key"),
        ("01.bytes", TOKEN * 128, "share one row"),
        ("01.bytes", 576, "how many numbers"),
        ("01.bytes", 1, "not it"),
        ("01.bytes", float(TOKEN), "whole number"),
        ("01.bytes", ..., "blank"),
    ],
)
def test_wrong_answers_get_one_sentence(name, attempt, words):
    verdict = repr(check(name, attempt))
    assert verdict.startswith(f"{name}: not yet. ")
    assert words in verdict
    assert "\n" not in verdict


def test_the_answer_in_bytes_is_that_of_the_preset():
    shape = preset("deepseek-v3")
    assert shape.cache_dim * 2 * shape.num_layers == TOKEN
    assert list(EXERCISES) == ["01.absorb", "01.rotate", "01.write_rows", "01.bytes"]
