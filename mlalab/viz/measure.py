"""How wide a piece of text can get, without a browser.

The picture is drawn in Python and shown with whatever system font the reader has, so a box must
be wide enough for the widest of them. The widths below are those of DejaVu Sans, the widest face
in the font stack of `viz.svg`: narrower fonts leave a little more air, none touches the border.
"""

from __future__ import annotations

_REGULAR = {
    28: "'ijlIJ",
    34: " ,./:;\\|",
    41: "f-()[]tr!",
    53: '"*_`sz?c',
    60: "LFkvxyPTYao",
    64: "e$0123456789{}ESbdghnpqu",
    70: "KAVBRXZC",
    79: "UHNDG&OQ",
    86: "w#+<=>^~M",
    100: "%mW@",
}
_BOLD = {
    35: "'ijl /IJ\\|",
    42: ",.:;-",
    48: "f!()[]t",
    52: 'r_`"*',
    60: "?zcs",
    69: "LvxyakEFTeo",
    73: "$0123456789hnu{}SYbdgpqCPZ",
    83: "BAKRVXUGD",
    87: "#+<=>HN^~OQ&",
    104: "w%@Mm",
    110: "W",
}
_WIDEST = 100
"""Hundredths of an em for a character that is in no table (other scripts, symbols)."""


def _by_char(table: dict[int, str]) -> dict[str, int]:
    return {char: width for width, chars in table.items() for char in chars}


_WIDTHS = {False: _by_char(_REGULAR), True: _by_char(_BOLD)}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Upper estimate of the width of `text` in pixels at `size` pixels."""
    widths = _WIDTHS[bold]
    return sum(widths.get(char, _WIDEST) for char in text) * size / 100


def elide(text: str, limit: int) -> str:
    """`text` cut in the middle to `limit` characters: both ends of a long name tell it apart."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def wrap(text: str, limit: int) -> list[str]:
    """`text` in lines of at most `limit` characters, broken after `_` or `.` where there is one."""
    lines = []
    while len(text) > limit:
        cut = max(text.rfind(mark, 0, limit) for mark in "_.") + 1
        cut = cut if cut > limit // 3 else limit
        lines.append(text[:cut])
        text = text[cut:]
    return [*lines, text]
