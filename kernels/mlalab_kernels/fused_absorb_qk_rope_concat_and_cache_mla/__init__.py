"""The whole decode preparation: absorption, RoPE, cache write, query."""
