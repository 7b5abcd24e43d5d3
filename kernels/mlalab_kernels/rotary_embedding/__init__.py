"""In-place RoPE on query and key."""
