"""The ordered list of passes."""

from __future__ import annotations

from mlalab.passes.fix_functionalization import FixFunctionalizationPass
from mlalab.passes.fusion import Pass
from mlalab.passes.mla_aiter_qk_rope_kvcache import MLAAiterQkRopeKVCacheFusionPass
from mlalab.passes.mla_decode_q_prep_lift import MLADecodeQPrepLiftPass
from mlalab.passes.mla_rope_kvcache_cat import MLARoPEKVCacheCatFusionPass
from mlalab.passes.noop_elimination import NoOpEliminationPass
from mlalab.passes.rope_kvcache import RopeKVCacheFusionPass
from mlalab.passes.scatter_split import ScatterSplitReplacementPass
from mlalab.passes.split_coalescing import SplitCoalescingPass


class _Pipeline(tuple[Pass, ...]):
    """A tuple that prints as its name: it is a default argument, and help() shows those."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PIPELINE"


PIPELINE: tuple[Pass, ...] = _Pipeline(
    (
        NoOpEliminationPass,
        SplitCoalescingPass,
        ScatterSplitReplacementPass,
        MLARoPEKVCacheCatFusionPass,
        RopeKVCacheFusionPass,
        MLADecodeQPrepLiftPass,
        MLAAiterQkRopeKVCacheFusionPass,
        FixFunctionalizationPass,
    )
)
