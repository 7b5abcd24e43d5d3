"""Exercises of `01_mla_by_hand`: absorb, rotate, write a cache row, count its bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlalab.shapes import MLAShape, preset
from mlalab.teach import Case, Exercise, equals, same_as
from mlalab_kernels.numerics import rotate


def absorb_reference(q_nope_TNP: Tensor, w_uk_NPL: Tensor) -> Tensor:
    """Return `q_nope · W_UK` head by head, `[T, N, L]`."""
    out_TNL = q_nope_TNP.new_empty((*q_nope_TNP.shape[:2], w_uk_NPL.size(-1)))
    for head in range(w_uk_NPL.size(0)):
        out_TNL[:, head] = q_nope_TNP[:, head] @ w_uk_NPL[head]
    return out_TNL


def rotate_reference(x_TNR: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Return `x` with neighbours rotated, in fp32 with one rounding to `x`'s dtype."""
    return rotate(x_TNR, cos_TH, sin_TH, is_neox=False, in_fp32=True)


def write_rows_reference(
    cache_SC: Tensor, slot_mapping: Tensor, kv_c_TL: Tensor, k_pe_TR: Tensor
) -> None:
    """Write `[kv_c | k_pe]` of the first tokens into the rows that `slot_mapping` names."""
    rows_TC = torch.cat((kv_c_TL, k_pe_TR), dim=-1)  # a copy: the cache may be its source
    for slot, row_C in zip(slot_mapping.tolist(), rows_TC, strict=False):
        if slot >= 0:
            cache_SC[slot] = row_C


def _whole(*shape: int) -> Tensor:
    # Small whole numbers: every order of summation gives the same sum, so equality is fair.
    return torch.randint(-4, 5, shape).float()


def _absorb_case(label: str, tokens: int, heads: int) -> Callable[[], Case]:
    def make() -> Case:
        # Query and weight come as slices of wider tensors, as in the layer.
        q_TNH, w_kv_b = _whole(tokens, heads, 12), _whole(heads, 13, 5)
        return Case(label, (q_TNH[..., :7], w_kv_b[:, :7]))

    return make


def _rotate_case(label: str, tokens: int, heads: int, dtype: torch.dtype) -> Callable[[], Case]:
    def make() -> Case:
        q_TNH = torch.randn(tokens, heads, 14).to(dtype)
        angles = torch.randn(tokens, 3) * 9
        return Case(label, (q_TNH[..., 8:], angles.cos(), angles.sin()))

    return make


def _write_case(label: str, tokens: int, slots: list[int]) -> Callable[[], Case]:
    def make() -> Case:
        latent_TC, cache_SC = torch.randn(tokens, 9), torch.randn(7, 9)
        return Case(label, (cache_SC, _slots(slots), latent_TC[:, :6], latent_TC[:, 6:]))

    return make


def _write_from_itself() -> Case:
    cache_SC = torch.randn(7, 9)
    source = cache_SC[1:4]
    label = "rows that move within the cache: tokens are views of what is written"
    return Case(label, (cache_SC, _slots([2, 3, 4]), source[:, :6], source[:, 6:]))


def _slots(slots: list[int]) -> Tensor:
    return torch.tensor(slots, dtype=torch.int64)


def _bytes_of_a_token(shape: MLAShape) -> int:
    return shape.cache_dim * torch.bfloat16.itemsize * shape.num_layers


def _explain_bytes(answer: Any) -> str:
    shape = preset("deepseek-v3")
    assert isinstance(shape, MLAShape)
    right = _bytes_of_a_token(shape)
    said = {
        right // shape.num_layers: "That is one layer; the model has 61, each with a cache.",
        right // 2: "A bfloat16 number takes 2 bytes.",
        right // 4: "That is the size in FP8, halved again; the cache here is bfloat16.",
        shape.cache_dim: "That is how many numbers a row has, not how many bytes all rows take.",
        2 * shape.kv_lora_rank * shape.num_layers: "The rotated key is kept too.",
        right * shape.num_heads: "All heads share one row: that is the point of a latent.",
    }
    if type(answer) is not int:
        return f"A whole number of bytes is expected, and this is a {type(answer).__name__}."
    return said.get(answer, f"{answer} is not it: how wide is a row, and how many are there?")


def _bytes_exercise() -> Exercise:
    shape = preset("deepseek-v3")
    assert isinstance(shape, MLAShape)
    praise = "576 numbers of 2 bytes in each of 61 layers, for any number of heads."
    return Exercise(equals(_bytes_of_a_token(shape), _explain_bytes), praise)


EXERCISES = {
    "01.absorb": Exercise(
        same_as(
            absorb_reference,
            [
                _absorb_case("3 tokens and 4 heads", 3, 4),
                _absorb_case("4 tokens and 3 heads", 4, 3),
                _absorb_case("1 token and 1 head", 1, 1),
                _absorb_case("no tokens", 0, 2),
            ],
        ),
        "Each head meets its own slice of W_UK, and no token sees another.",
    ),
    "01.rotate": Exercise(
        same_as(
            rotate_reference,
            [
                _rotate_case("5 fp32 tokens", 5, 2, torch.float32),
                _rotate_case("5 bfloat16 tokens", 5, 4, torch.bfloat16),
                _rotate_case("1 bfloat16 token and 1 head", 1, 1, torch.bfloat16),
                _rotate_case("no tokens", 0, 3, torch.bfloat16),
            ],
        ),
        "Neighbours are paired, the arithmetic is fp32, and the result is rounded once.",
    ),
    "01.write_rows": Exercise(
        same_as(
            write_rows_reference,
            [
                _write_case("3 tokens", 3, [4, 0, 6]),
                _write_case("1 token", 1, [6]),
                _write_case("slots of -1", 5, [3, -1, 0, -1, 5]),
                _write_case("a slot mapping shorter than the batch", 5, [2, -1, 4]),
                _write_case("nothing but padding", 2, [-1, -1]),
                _write_case("no tokens", 0, []),
                _write_from_itself,
            ],
        ),
        "In place, by slot, padding left out, and read before written.",
    ),
    "01.bytes": _bytes_exercise(),
}
