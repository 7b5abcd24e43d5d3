"""Timing kernels on a GPU: independent cells, each a spec in and a result out, both plain data."""
