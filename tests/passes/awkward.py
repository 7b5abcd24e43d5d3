"""MLA models that a fusion is likely to get wrong; each says in one line what is odd about it.

A model gets one layer, positions, and the layer's query, latent and key before RoPE.
"""

from __future__ import annotations

import torch

from mlalab.rope import RotaryEmbedding
from tests.passes.models import attend, rotate, write


def finish(layer, q, kv_c, k_pe):
    return attend(layer, q, kv_c, k_pe, write(layer, kv_c, k_pe))


def query_read_before(layer, positions, q, kv_c, k_pe):
    """Something reads the unrotated query, before RoPE writes it."""
    extra = q[..., layer.shape.qk_nope_head_dim :].sum((1, 2))
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe) + extra[:, None]


def query_read_after(layer, positions, q, kv_c, k_pe):
    """Something reads the unrotated query, after the attention."""
    old = q.clone()
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe) + old.sum((1, 2))[:, None]


def key_read_after(layer, positions, q, kv_c, k_pe):
    """Something reads the unrotated key."""
    old = k_pe.clone()
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), old.relu()


def rotated_query_read(layer, positions, q, kv_c, k_pe):
    """Something besides attention reads the rotated query."""
    nope = layer.shape.qk_nope_head_dim
    q_rot, k_pe = layer.rotary_emb(positions, q[..., nope:], k_pe)
    q[..., nope:] = q_rot
    return finish(layer, q, kv_c, k_pe), q_rot * 2


def rotated_parts_returned(layer, positions, q, kv_c, k_pe):
    """The rotated query and key leave the graph."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), q.clone(), k_pe.clone()


def rotated_key_read(layer, positions, q, kv_c, k_pe):
    """Something besides cache and attention reads the rotated key."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), k_pe.relu()


def rotated_key_summed(layer, positions, q, kv_c, k_pe):
    """Something sums the rotated key, in the order in which it lies in memory."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), k_pe.sum(), k_pe.squeeze(1).mean()


def rotated_key_by_place(layer, positions, q, kv_c, k_pe):
    """Something names elements of the rotated key by their place in memory."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), k_pe.as_strided((2, 3), (3, 1), 1).clone()


def rotated_key_and_itself(layer, positions, q, kv_c, k_pe):
    """The rotated key leaves the graph as it lies."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), k_pe


def rotated_query_summed(layer, positions, q, kv_c, k_pe):
    """Something sums the rotated query, in the order in which it lies in memory."""
    nope = layer.shape.qk_nope_head_dim
    q_rot, k_pe = layer.rotary_emb(positions, q[..., nope:], k_pe)
    q[..., nope:] = q_rot
    return finish(layer, q, kv_c, k_pe), q_rot.sum()


def rotated_key_summed_later(layer, positions, q, kv_c, k_pe):
    """Something sums what is dense however the rotated key lies."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe), (k_pe * 2).sum()


def cos_read(layer, positions, q, kv_c, k_pe):
    """Something reads a node inside the pattern."""
    k_pe = rotate(layer, positions, q, k_pe)
    cos, _ = layer.rotary_emb.cos_sin_cache[positions].chunk(2, -1)
    return finish(layer, q, kv_c, k_pe), cos * 2


def query_scaled(layer, positions, q, kv_c, k_pe):
    """The query is scaled after RoPE, out of place."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q * 0.5, kv_c, k_pe)


def query_scaled_in_place(layer, positions, q, kv_c, k_pe):
    """The query is scaled after RoPE, in place."""
    k_pe = rotate(layer, positions, q, k_pe)
    q *= 0.5
    return finish(layer, q, kv_c, k_pe)


def rope_part_scaled_in_place(layer, positions, q, kv_c, k_pe):
    """Only the rope part of the query is scaled after RoPE, in place."""
    k_pe = rotate(layer, positions, q, k_pe)
    q[..., layer.shape.qk_nope_head_dim :] *= 0.5
    return finish(layer, q, kv_c, k_pe)


def query_born_3d(layer, positions, q, kv_c, k_pe):
    """The query is not a view of a 2-D product."""
    q = torch.cos(q)
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe)


def query_joined(layer, positions, q, kv_c, k_pe):
    """The rotated part never was a slice of the query."""
    nope = layer.shape.qk_nope_head_dim
    q_rot, k_pe = layer.rotary_emb(positions, q[..., nope:].relu(), k_pe)
    return finish(layer, torch.cat((q[..., :nope], q_rot), -1), kv_c, k_pe)


def one_product_split(layer, positions, q, kv_c, k_pe):
    """Query and key are views of one tensor."""
    shape = layer.shape
    both = torch.cat((q.flatten(1), k_pe.flatten(1)), -1)
    q, k_pe = both.split([shape.num_heads * shape.qk_head_dim, shape.qk_rope_head_dim], -1)
    q, k_pe = q.view(-1, shape.num_heads, shape.qk_head_dim), k_pe.unsqueeze(1)
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c, k_pe)


def key_squeezed(layer, positions, q, kv_c, k_pe):
    """The cache update takes the key without its head dimension."""
    k_pe = rotate(layer, positions, q, k_pe)
    return attend(layer, q, kv_c, k_pe, write(layer, kv_c, k_pe.squeeze(1)))


def key_scaled(layer, positions, q, kv_c, k_pe):
    """The key is scaled between RoPE and the cache."""
    k_pe = rotate(layer, positions, q, k_pe) * 2
    return finish(layer, q, kv_c, k_pe)


def key_rotated_first(layer, positions, q, kv_c, k_pe):
    """Key and query have exchanged places."""
    nope = layer.shape.qk_nope_head_dim
    k_pe, q[..., nope:] = layer.rotary_emb(positions, k_pe, q[..., nope:])
    return finish(layer, q, kv_c, k_pe)


def only_the_cache_is_rotated(layer, positions, q, kv_c, k_pe):
    """Nothing reads the rotated query, and attention reads the unrotated key."""
    nope = layer.shape.qk_nope_head_dim
    _, k_rot = layer.rotary_emb(positions, q[..., nope:].clone(), k_pe.clone())
    return attend(layer, q, kv_c, k_pe, write(layer, kv_c, k_rot))


def no_cache_update(layer, positions, q, kv_c, k_pe):
    """RoPE without a cache to write."""
    k_pe = rotate(layer, positions, q, k_pe)
    return attend(layer, q, kv_c, k_pe, None)


def rotated_twice(layer, positions, q, kv_c, k_pe):
    """RoPE, and RoPE again."""
    k_pe = rotate(layer, positions, q, rotate(layer, positions, q, k_pe))
    return finish(layer, q, kv_c, k_pe)


def latent_needs_query(layer, positions, q, kv_c, k_pe):
    """The latent depends on the rotated query."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c + q.mean((1, 2))[:, None], k_pe)


def latent_needs_key(layer, positions, q, kv_c, k_pe):
    """The latent depends on the rotated key."""
    k_pe = rotate(layer, positions, q, k_pe)
    return finish(layer, q, kv_c * k_pe.mean((1, 2))[:, None], k_pe)


def cache_written_last(layer, positions, q, kv_c, k_pe):
    """Attention reads the cache before this step's rows are in it."""
    k_pe = rotate(layer, positions, q, k_pe)
    return attend(layer, q, kv_c, k_pe, None), write(layer, kv_c, k_pe)


def half_rotated(layer, positions, q, kv_c, k_pe):
    """RoPE turns half of the rope dimensions."""
    half = layer.shape.qk_rope_head_dim // 2
    table = layer.rotary_emb.cos_sin_cache.unflatten(-1, (2, -1))[..., : half // 2].flatten(1)

    def rope(positions, query, key):
        turned = RotaryEmbedding.forward_static(
            positions, query[..., :half], key[..., :half], table, False, True
        )
        return [
            torch.cat((a, b[..., half:]), -1) for a, b in zip(turned, (query, key), strict=True)
        ]

    k_pe = rotate(layer, positions, q, k_pe, rope)
    return finish(layer, q, kv_c, k_pe)


def permuted(layer, positions, q, kv_c, k_pe):
    """As transformers' DeepSeek-V3: neighbours are brought to half-split order, then turned."""

    def rope(positions, *parts):
        parts = [x.unflatten(-1, (-1, 2)).transpose(-1, -2).reshape(x.shape) for x in parts]
        table = layer.rotary_emb.cos_sin_cache
        return layer.rotary_emb.forward_static(positions, *parts, table, True, True)

    k_pe = rotate(layer, positions, q, k_pe, rope)
    return finish(layer, q, kv_c, k_pe)


def computed_in_fp64(layer, positions, q, kv_c, k_pe):
    """RoPE computes in a type that no variant has."""

    def rope(positions, query, key):
        table = layer.rotary_emb.cos_sin_cache.double()
        turned = layer.rotary_emb.forward_static(
            positions, query.double(), key.double(), table, False, False
        )
        return [x.to(query.dtype) for x in turned]

    k_pe = rotate(layer, positions, q, k_pe, rope)
    return finish(layer, q, kv_c, k_pe)
