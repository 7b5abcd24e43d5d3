"""Attention layers, and loading them from a Hugging Face directory."""
