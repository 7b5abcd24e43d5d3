"""Prefill attention over decompressed keys and values, one request."""

from __future__ import annotations

import torch
from torch import Tensor


def mla_prefill_attention(
    q_TNH: Tensor, kv_c_SL: Tensor, k_pe_SR: Tensor, w_kv_b: Tensor, softmax_scale: float
) -> Tensor:
    """Attend from the last T of S tokens to all S, causally, as multi-head attention.

    Args:
        q_TNH: `[T, N, P + R]` rotated query of the new tokens.
        kv_c_SL, k_pe_SR: latents and rotated rope keys of cached context and new tokens, in order.
        w_kv_b: `[N, P + V, L]`, the up-projection of keys and values.

    Returns:
        `out_TNV` in `q`'s dtype.
    """
    num_heads, rope_dim = q_TNH.size(1), k_pe_SR.size(-1)
    nope_dim = q_TNH.size(-1) - rope_dim
    kv_SNH = torch.einsum("sl,nhl->snh", kv_c_SL, w_kv_b)
    k_nope, v_SNV = kv_SNH.split([nope_dim, kv_SNH.size(-1) - nope_dim], dim=-1)
    k_SNH = torch.cat((k_nope, k_pe_SR[:, None, :].expand(-1, num_heads, -1)), dim=-1)
    scores = torch.einsum("tnh,snh->nts", q_TNH, k_SNH).float() * softmax_scale
    num_new, num_all = q_TNH.size(0), kv_c_SL.size(0)
    reach = torch.arange(num_all - num_new, num_all, device=q_TNH.device)
    future = torch.arange(num_all, device=q_TNH.device) > reach[:, None]
    probs = scores.masked_fill(future, -torch.inf).softmax(-1).to(v_SNV.dtype)
    return torch.einsum("nts,snv->tnv", probs, v_SNV)
