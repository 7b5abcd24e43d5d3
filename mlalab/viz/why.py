"""Why a pattern did not match, on the pattern's own picture: how far it agreed, and where not."""

from __future__ import annotations

from collections.abc import Hashable
from html import escape

from mlalab.errors import TraceError
from mlalab.records import PatternRecord, Refusal, StepRecord
from mlalab.viz import theme
from mlalab.viz._why_panel import Fate, draw_pattern, fates, why_legend, why_style
from mlalab.viz.card import card
from mlalab.viz.measure import text_width
from mlalab.viz.show import Figure
from mlalab.viz.text import why_sentence, why_text

_MARGIN = 20
_HEAD = 56
_GAP = 36


def why_figure(step: StepRecord) -> Figure:
    """The nearest variant of every different refusal, with what agreed, differed, was not reached.

    Raises:
        TraceError: no pattern was refused in this step.
    """
    whys = refused_patterns(step)
    if not whys:
        raise TraceError(
            f"{step.name} refused no pattern, so there is none to draw; why({step.name!r}) says "
            "what happened."
        )
    alt = " ".join(why_alt(pattern, refusal) for pattern, refusal, _ in whys)
    return Figure(
        svg=_why_svg([(pattern, refusal) for pattern, refusal, _ in whys], alt),
        alt=alt,
        caption=" ".join(f"{why_sentence(refusal, count)}." for _, refusal, count in whys),
        text=why_text(step.refusals),
    )


def refused_patterns(step: StepRecord) -> list[tuple[PatternRecord, Refusal, int]]:
    """Refusals of patterns that look different: the pattern, the first of them, how many.

    Layers that are alike are refused at nodes of different names, so their reasons differ.
    """
    alike: dict[Hashable, list[Refusal]] = {}
    for x in step.refusals:
        reason = x.reason if x.failed is None else ""
        alike.setdefault((x.pattern, x.agreed, x.failed, x.expected, x.found, reason), []).append(x)
    firsts = [(group[0], len(group)) for group in alike.values()]
    return [(step.patterns[x.pattern], x, n) for x, n in firsts if x.pattern is not None]


def why_alt(pattern: PatternRecord, refusal: Refusal) -> str:
    """The finding in a sentence."""
    return f"Pattern {pattern.name} at {refusal.node}: {_share(pattern, refusal)}; {_end(refusal)}."


def why_head(pattern: PatternRecord, refusal: Refusal) -> str:
    """The pattern's name and how much of it agreed, for the heading of its picture."""
    return f"pattern {pattern.name}, {pattern.source}: {_share(pattern, refusal)}"


def bare_why_svg(pattern: PatternRecord, refusal: Refusal) -> str:
    """The picture for the stepper, whose page has the card, the heading and the style."""
    panel, folded = draw_pattern(pattern, refusal, live=True)
    key = why_legend(_fates(pattern, refusal), folded=folded)
    width = max(panel.width, key.width) + 2 * _MARGIN
    height = panel.height + key.height + 3 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="group" '
        f'aria-label="{escape(why_alt(pattern, refusal))}">'
        f'<g transform="translate({(width - panel.width) // 2} {_MARGIN})">{panel.markup}</g>'
        f'<g transform="translate(10 {panel.height + 2 * _MARGIN})">{key.markup}</g></svg>'
    )


def _why_svg(whys: list[tuple[PatternRecord, Refusal]], alt: str) -> str:
    """The patterns below each other on one card, with the legend at the end."""
    parts, y, right = [f"<style>{why_style()}</style>"], _MARGIN, 0
    shown: set[Fate] = set()
    any_folded = False
    for pattern, refusal in whys:
        panel, folded = draw_pattern(pattern, refusal, live=False)
        head, sub = f"pattern {pattern.name}", f"{pattern.source}: {_share(pattern, refusal)}"
        words = text_width(head, theme.HEAD_SIZE, bold=True), text_width(sub, theme.NOTE_SIZE)
        wide = max(panel.width, *map(round, words))
        parts.append(
            f'<g transform="translate({_MARGIN} {y})"><text class="h" y="10">{escape(head)}</text>'
            f'<text class="f" y="28">{escape(sub)}</text>'
            f'<g transform="translate({(wide - panel.width) // 2} {_HEAD})">{panel.markup}</g></g>'
        )
        right, y = max(right, wide), y + _HEAD + panel.height + _GAP
        shown |= _fates(pattern, refusal)
        any_folded |= folded
    key = why_legend(shown, folded=any_folded)
    parts.append(f'<g transform="translate({_MARGIN - 10} {y - 12})">{key.markup}</g>')
    width = max(right, key.width) + 2 * _MARGIN
    return card(width, y + key.height, "".join(parts), alt)


def _fates(pattern: PatternRecord, refusal: Refusal) -> set[Fate]:
    return set(fates(pattern, refusal).values())


def _share(pattern: PatternRecord, refusal: Refusal) -> str:
    """How many of the pattern's calls agreed; its inputs agree with anything."""
    calls = {node.name for node in pattern.nodes if node.op == "call_function"}
    return f"{len(calls.intersection(refusal.agreed))} of {len(calls)} ops agree"


def _end(refusal: Refusal) -> str:
    return f"the next differs, {refusal.reason}" if refusal.failed else f"but {refusal.reason}"
