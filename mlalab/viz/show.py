"""Putting a picture where the reader is: in a notebook, or as text in a terminal.

A picture goes out as `<img>` with its text alternative, the one form that JupyterLab still draws
in a notebook that was cloned and never run: inline SVG, styles and scripts are dropped there.
The plain text beside it is deterministic and carries the notebook tests.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its text alternative, its caption and its plain-text form."""

    svg: str
    alt: str
    caption: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": figure_html(self.svg, self.alt, self.caption),
            "text/plain": self.text,
        }


def figure_html(svg: str, alt: str, caption: str) -> str:
    """An SVG as a self-contained `<figure>`."""
    data = base64.b64encode(svg.encode()).decode("ascii")
    return (
        '<figure style="margin:0">'
        f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}" '
        'style="max-width:100%;height:auto">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def show(obj: object) -> None:
    """Display `obj` in the running notebook, or print its text where there is none."""
    # Without a running IPython nothing of it is imported: a terminal does not pay for it.
    if "IPython" in sys.modules:
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(obj)
            return
    print(obj)
