"""AITER's fused RoPE, latent cache write and query concatenation."""
