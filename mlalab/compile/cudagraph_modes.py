"""The modes of CUDA graphs under vLLM's names, and what each does for which kind of batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mlalab.context import BatchKind

CudaGraphMode = Literal["NONE", "PIECEWISE", "FULL", "FULL_AND_PIECEWISE"]
Style = Literal["PIECEWISE", "FULL"]
"""Graphs between the calls of attention, or one graph around the whole batch."""

STYLES: Mapping[CudaGraphMode, Mapping[BatchKind, Style]] = {
    "NONE": {},
    "PIECEWISE": {"decode": "PIECEWISE", "prefill": "PIECEWISE", "general": "PIECEWISE"},
    "FULL": {"decode": "FULL", "prefill": "FULL", "general": "FULL"},
    "FULL_AND_PIECEWISE": {"decode": "FULL", "prefill": "PIECEWISE", "general": "PIECEWISE"},
}
"""Mode → kind of batch → style that is asked for; a kind that is missing runs without graphs."""
