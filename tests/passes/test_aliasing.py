"""Regions: never said to be apart when they share an element; the common cases are proved."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlalab.passes.aliasing import Region


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
