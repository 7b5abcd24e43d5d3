"""The decode threshold: what a setting compiles, captures, costs in memory, and buys in time."""
