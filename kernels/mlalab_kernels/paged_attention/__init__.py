"""Grouped-query attention over the paged key and value cache."""
