"""The rotary kernel against its reference, bit for bit, and nothing written beside the heads."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from mlalab_kernels import triton_rows
from mlalab_kernels.launch import recording
from mlalab_kernels.rotary_embedding.reference import rotary_embedding as reference
from mlalab_kernels.rotary_embedding.triton_kernel import rotary_embedding

BF16, F32 = torch.bfloat16, torch.float32
M, GUARD = 37, 7.25


def table_of(rotary_dim, dtype=F32):
    angles = torch.randn(M, rotary_dim // 2) * 3
    return torch.cat((angles.cos(), angles.sin()), -1).to(dtype)


def guarded(tokens, heads, width, dtype):
    """A view with guard bands around every row and head, and the storage that it lies in."""
    storage = torch.full((tokens + 2, heads + 1, width + 5), GUARD).to(dtype)
    view = storage[1:-1, :-1, 3:-2]
    view.copy_(torch.randn(view.shape))
    return view, storage


def assert_same(positions, query, key, head_size, table, is_neox, run=rotary_embedding):
    """Run on clones of the storages of query and key, and compare every byte of these."""
    results = []
    for function in (run, reference):
        copies = [x and (x[1].clone(), x[0]) for x in (query, key)]
        views = [
            c and c[0].as_strided(c[1].shape, c[1].stride(), c[1].storage_offset()) for c in copies
        ]
        function(positions, *views, head_size, table, is_neox)
        results.append([c[0].contiguous().view(torch.uint8) for c in copies if c])
    for name, got, expected in zip(("query", "key"), *results, strict=False):
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize(("dtype", "table_dtype"), [(BF16, F32), (BF16, BF16), (F32, F32)])
@pytest.mark.parametrize(
    ("tokens", "q_heads", "k_heads", "head_size", "rotary_dim"),
    [
        (0, 4, 1, 16, 16),
        (1, 1, 1, 2, 2),
        (3, 16, 1, 64, 64),
        (5, 3, 2, 24, 16),
        (2, 17, 5, 12, 12),
        (2, 9, 0, 256, 256),
    ],
)
def test_equals_the_reference(
    tokens, q_heads, k_heads, head_size, rotary_dim, dtype, table_dtype, is_neox
):
    query, key = (guarded(tokens, n, head_size, dtype) for n in (q_heads, k_heads))
    table = table_of(rotary_dim, table_dtype)
    assert_same(torch.randint(M, (tokens,)), query, key, head_size, table, is_neox)


@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("head_size", [8, 12])
def test_flat_heads_and_no_key(head_size, is_neox):
    storage = torch.full((6, 3 * head_size + 4), GUARD, dtype=BF16)
    flat = storage[1:, 1 : 1 + 3 * head_size]
    flat.copy_(torch.randn(flat.shape))
    positions, table = torch.randint(M, (5,)), table_of(8)
    assert_same(positions, (flat, storage), None, head_size, table, is_neox)
    assert_same(positions, (flat, storage), (flat.clone(),) * 2, head_size, table, is_neox)


def test_slices_of_a_layer():
    """The query's rope columns and the key as the last columns of the latent, as MLA has them."""
    q, latent = torch.randn(4, 3, 24).to(BF16), torch.randn(4, 40).to(BF16)
    key = latent[:, None, 32:]
    assert_same(torch.randint(M, (4,)), (q[..., 16:], q), (key, latent), 8, table_of(8), False)


def test_any_strides():
    storage = torch.randn(8, 3, 5)
    query, positions = (storage.permute(2, 1, 0), storage), torch.randint(M, (10,))[::2]
    wide = table_of(16)
    assert_same(positions, query, None, 8, torch.cat((wide[:, :4], wide[:, 8:12]), -1), True)
    assert_same(positions, query, None, 8, wide[:, ::2], True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions_outside_read_the_nearest_row(dtype):
    positions = torch.tensor([-1, 0, M - 1, M, torch.iinfo(dtype).max, torch.iinfo(dtype).min])
    query, key = guarded(6, 2, 8, BF16), guarded(6, 1, 8, BF16)
    assert_same(positions.to(dtype), query, key, 8, table_of(8), False)


def test_key_of_another_dtype():
    assert_same(
        torch.randint(M, (3,)), guarded(3, 2, 8, BF16), guarded(3, 1, 8, F32), 8, table_of(8), True
    )


def test_query_and_key_take_one_launch():
    query, key = torch.randn(3, 20, 64), torch.randn(3, 1, 64)
    with recording("cuda") as launches:
        rotary_embedding(torch.arange(3), query, key, 64, table_of(64), False)
    assert [launch.grid for launch in launches] == [(3, 3)]


@pytest.mark.parametrize("change", ["pairing", "sign", "position", "width"])
def test_a_wrong_kernel_is_noticed(change):
    def broken(positions, query, key, head_size, table, is_neox):
        if change == "sign":
            table = torch.cat((table[:, :4], -table[:, 4:]), -1)
        positions = positions + (change == "position")
        is_neox = is_neox != (change == "pairing")
        if change == "width":
            table = table[:, [0, 1, 4, 5]]
        rotary_embedding(positions, query, key, head_size, table, is_neox)

    arguments = torch.randint(M - 1, (3,)), guarded(3, 2, 8, BF16), None, 8, table_of(8), False
    assert_same(*arguments)
    with pytest.raises(AssertionError):
        assert_same(*arguments, run=broken)


def test_a_store_beside_the_heads_is_noticed():
    """One column too many, of a head that is wider than what is rotated."""

    def all_columns(D, HALF, IS_NEOX):
        columns, _ = pair_columns(D, HALF, IS_NEOX)
        return columns, columns < 2 * HALF + 2

    pair_columns = triton_rows.pair_columns.fn
    arguments = torch.randint(M, (3,)), guarded(3, 2, 6, F32), None, 6, table_of(6), False
    assert_same(*arguments)
    with (
        mock.patch.object(triton_rows, "pair_columns", all_columns),
        pytest.raises(AssertionError),
    ):
        assert_same(*arguments)
