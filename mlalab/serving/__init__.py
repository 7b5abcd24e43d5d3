"""A small server for benchmarks: requests, paged cache blocks, continuous batching, a decoder."""
