"""Which token counts CUDA graphs are captured for, by class of batch: vLLM's rule.

Read in vLLM's source, stated here in other words (`VllmConfig._set_cudagraph_sizes`,
`CompilationConfig.adjust_cudagraph_sizes_for_spec_decode`, `CudaGraphManager._init_candidates`):

* the largest size is twice the decode bound, at most 512 and at most `max_num_batched_tokens`;
* sizes are 1, 2, 4, then every 8th number below 256, then every 16th, up to the largest;
* with speculation each is rounded up to whole requests of `1 + num_speculative_tokens` tokens, and
  dropped where that is more than the largest one in the list; if none is left, one request is kept;
* each size gets a mixed graph; those from one request to the decode bound get a uniform decode
  graph as well. A batch is padded to the next size of its class.

What captures and replays graphs is in `cudagraph.py`.
"""

from __future__ import annotations

from mlalab.compile.ranges import decode_bound

_LARGEST = 512


def capture_sizes(
    max_num_seqs: int, num_speculative_tokens: int, max_num_batched_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of uniform decode graphs and those of mixed graphs, ascending."""
    bound = decode_bound(max_num_seqs, num_speculative_tokens)
    largest = min(2 * bound, _LARGEST, max_num_batched_tokens)
    sizes = [x for x in (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)) if x <= largest]
    query_len = 1 + num_speculative_tokens
    if query_len > 1:
        # The list may end below `largest`, and that end is what counts from here on.
        largest = sizes[-1]
        whole = {-(-size // query_len) * query_len for size in sizes}
        sizes = sorted(size for size in whole if size <= largest)
        if not sizes and query_len <= largest:
            sizes = [query_len]
    decode = tuple(size for size in sizes if query_len <= size <= bound)
    return decode, tuple(sizes)
