"""Colours and type of the pictures.

A picture cannot follow the page's theme once it is an `<img>`, so it carries a light card and
these colours in both. The four states differ in shape as well (thick, dashed, double border, and
a +, − or ~ mark), and their hues stay apart for readers who confuse red and green. Every ink
has a contrast of at least 4.5 : 1 on what it is drawn on; a test computes it.
"""

from __future__ import annotations

from mlalab.viz.overlay import State

CARD = "#ffffff"
FRAME = "#d0d7de"
INK = "#1f2328"
FAINT = "#59636e"
LINE = "#636d78"
WRITE = "#8a2f86"
CUSTOM = "#5b2fa0"

FILL: dict[State, str] = {
    "same": "#f6f8fa",
    "created": "#e2f5ec",
    "erased": "#fff3ec",
    "rewired": "#eaf0ff",
}
STROKE: dict[State, str] = {
    "same": "#636d78",
    "created": "#00704f",
    "erased": "#a63c06",
    "rewired": "#2f55c8",
}
SYMBOL: dict[State, str] = {"created": "+", "erased": "−", "rewired": "~"}
CLASS: dict[State, str] = {"same": "s", "created": "c", "erased": "d", "rewired": "r"}

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"
TITLE_SIZE = 12
SUB_SIZE = 10
HEAD_SIZE = 15
NOTE_SIZE = 11


def style() -> str:
    """The style sheet of a picture. Everything is scoped to `.mg`, as it may land in a page."""
    states = "".join(
        f".mg .{CLASS[s]}>.b{{fill:{FILL[s]};stroke:{STROKE[s]}}}"
        f".mg .{CLASS[s]} .m{{fill:{STROKE[s]}}}.mg .e{CLASS[s]}{{stroke:{STROKE[s]}}}"
        for s in CLASS
    )
    return (
        f".mg text{{font-family:{FONT};fill:{INK};font-size:{TITLE_SIZE}px}}"
        f".mg .n text{{font-weight:600;text-anchor:middle}}.mg .n .x{{fill:{CUSTOM}}}"
        f".mg .n .p{{font-weight:400;font-size:{SUB_SIZE}px}}"
        f".mg .u,.mg .n .u{{font-size:{SUB_SIZE}px;font-weight:400;fill:{FAINT}}}"
        f".mg .h{{font-size:{HEAD_SIZE}px;font-weight:600}}"
        f".mg .f{{font-size:{NOTE_SIZE}px;fill:{FAINT}}}"
        f".mg .b{{stroke-width:1.2}}.mg .e{{fill:none;stroke-width:1.3}}{states}"
        ".mg .c>.b{stroke-width:2.6}.mg .d>.b{stroke-width:1.6;stroke-dasharray:5 3}"
        f".mg .i{{fill:none;stroke:{STROKE['rewired']};stroke-width:1}}"
        f".mg .o{{fill:{CARD};stroke-dasharray:none;stroke-width:1.6}}"
        ".mg .ec{stroke-width:2}.mg .ed{stroke-dasharray:5 4}"
        f".mg .w{{fill:none;stroke:{WRITE};stroke-width:2.8;stroke-linecap:round;"
        "stroke-dasharray:.1 5.2}"
        ".mg .a{stroke-dasharray:none;stroke-width:1.6;stroke-linecap:round}"
        f".mg .g{{fill:none;stroke:{CARD};stroke-width:1.8;stroke-linecap:round}}"
        f".mg .q{{fill:{CARD};stroke:{LINE};stroke-width:1}}"
    )
