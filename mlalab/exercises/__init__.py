"""The exercises of the notebooks: a file per notebook, holding a table `EXERCISES`.

Beside them lies what lessons take apart: graphs written by hand, and a rewrite that proves nothing.
"""

from __future__ import annotations

from importlib import import_module

from mlalab.teach import Exercise

TOPICS = {
    "01": "mla_by_hand",
    "02": "reading_an_fx_graph",
    "04": "mla_rope_kv_cache_cat",
    "05": "defunctionalization",
    "06": "fp8_kv_dtype",
    "07": "q_prep_lift_and_aiter",
    "08": "decode_threshold",
    "11": "write_your_own_pass",
    "12": "exposing_mla",
}
"""Number of a notebook → the file of its exercises, and the rest of the notebook's name."""


def find(name: str) -> Exercise | None:
    """Return the exercise called `name`, "NN.word", or None where there is none."""
    number = name.partition(".")[0]
    if number not in TOPICS:
        return None
    table: dict[str, Exercise] = import_module(f"{__name__}.{TOPICS[number]}").EXERCISES
    return table.get(name)
