"""Pictures of what multi-head latent attention keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlalab.errors import ConfigError
from mlalab.shapes import AttentionShape, GQAShape, preset
from mlalab.viz.plots import SERIES, plot
from mlalab.viz.show import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

GROUPS = 8
"""Key and value heads that a model without groups is given for comparison: as many as Llama-3."""
_KINDS = ("MHA", "GQA", "MLA")


def cached_bytes(shape: AttentionShape, value_bytes: int = 2) -> dict[str, int]:
    """Return the bytes that one token takes in one layer's cache, by kind of attention.

    "MHA": every query head keeps a key and a value of its own. "GQA": the model's groups do, or
    `GROUPS` of them. "MLA": the latent and the rope key; left out for a model without a latent.

    Args:
        value_bytes: of one number: 2 for bfloat16, 1 for FP8.
    """
    grouped = isinstance(shape, GQAShape)
    groups = shape.num_kv_heads if isinstance(shape, GQAShape) else min(GROUPS, shape.num_heads)
    widths = {"MHA": shape.num_heads * shape.kv_head_dim, "GQA": groups * shape.kv_head_dim}
    if not grouped:
        widths["MLA"] = shape.cache_dim
    return {kind: width * value_bytes for kind, width in widths.items()}


def cached_bytes_figure(names: Sequence[str], value_bytes: int = 2) -> Figure:
    """Bars of `cached_bytes` for the presets called `names`, at least one of them with a latent.

    Raises:
        ConfigError: unknown preset, or no latent attention among them.
    """
    rows = {name: cached_bytes(preset(name), value_bytes) for name in names}
    latent = [name for name in rows if "MLA" in rows[name]]
    if not latent:
        raise ConfigError("None of these presets has latent attention; add deepseek-v3.")
    widest = max(latent, key=lambda name: rows[name]["MHA"])
    most, least = rows[widest]["MHA"], rows[widest]["MLA"]
    return plot(
        lambda canvas: _draw(canvas, rows),
        alt=(
            f"Bars: for one token in one layer, {widest} would keep {most:,} bytes as multi-head "
            f"attention and keeps {least:,} as latent attention, {most / least:.0f} times less."
        ),
        caption=(
            f"Computed from the presets, {value_bytes} byte(s) a number, nothing is measured. "
            f"The last bar of each model is what it keeps."
        ),
        text=_text(rows),
        size=(7.2, 0.9 + 0.75 * len(rows)),
    )


def _draw(canvas: Canvas, rows: Mapping[str, Mapping[str, int]]) -> None:
    axes = canvas.add_subplot()
    for i, kind in enumerate(_KINDS):
        at = [y + 0.27 * (i - 1) for y, row in enumerate(rows.values()) if kind in row]
        values = [row[kind] for row in rows.values() if kind in row]
        bars = axes.barh(at, values, 0.25, color=SERIES[i], label=kind)
        axes.bar_label(bars, [f"{kind} {value:,}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("bytes per token and layer")


def _text(rows: Mapping[str, Mapping[str, int]]) -> str:
    width = max(len("bytes per token and layer"), *map(len, rows))
    lines = [f"{'bytes per token and layer':{width}}" + "".join(f"{k:>9}" for k in _KINDS)]
    lines += [
        f"{name:{width}}" + "".join(f"{row.get(kind, '-'):>9}" for kind in _KINDS)
        for name, row in rows.items()
    ]
    return "\n".join(lines)
