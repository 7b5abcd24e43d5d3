"""RoPE on query and key together with the key and value cache write."""
