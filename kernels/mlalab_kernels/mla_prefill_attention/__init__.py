"""MHA over decompressed keys and values."""
