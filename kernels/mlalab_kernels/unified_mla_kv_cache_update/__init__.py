"""Latent cache write of already rotated rows."""
