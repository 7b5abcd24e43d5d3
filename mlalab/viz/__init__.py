"""Drawing what passes do to a graph: text, pictures and one-file pages, from records alone.

Nothing here needs a compiler or the network, and torch only where bytes are looked at (`bits`), so
a saved trace can be looked at anywhere.
The parts load on first use. (`show` itself is in `mlalab.viz.show`, whose name it shares.)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlalab.viz.alt import before_after_alt, step_alt
    from mlalab.viz.cost import Measured, cost_table
    from mlalab.viz.export import trace_html
    from mlalab.viz.show import Figure, before_after_figure, figure_html, step_figure, trace_figure
    from mlalab.viz.stepper import Stepper
    from mlalab.viz.svg import before_after_svg, step_svg
    from mlalab.viz.text import op_delta, step_table, why_text
    from mlalab.viz.why import why_figure

__all__ = [
    "Figure",
    "Measured",
    "Stepper",
    "before_after_alt",
    "before_after_figure",
    "before_after_svg",
    "cost_table",
    "figure_html",
    "op_delta",
    "step_alt",
    "step_figure",
    "step_svg",
    "step_table",
    "trace_figure",
    "trace_html",
    "why_figure",
    "why_text",
]

_HOME = {
    "Figure": "show",
    "Measured": "cost",
    "Stepper": "stepper",
    "before_after_alt": "alt",
    "before_after_figure": "show",
    "before_after_svg": "svg",
    "cost_table": "cost",
    "figure_html": "show",
    "op_delta": "text",
    "step_alt": "alt",
    "step_figure": "show",
    "step_svg": "svg",
    "step_table": "text",
    "trace_figure": "show",
    "trace_html": "export",
    "why_figure": "why",
    "why_text": "text",
}


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
