"""Preparation of the decode query: absorbed, joined, quantised."""
