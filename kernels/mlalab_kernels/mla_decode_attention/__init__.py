"""Absorbed MQA over the paged latent cache."""
