"""The live byte: eight buttons that flip bits. Loads anywidget, so it is imported when first used.

The script decodes by the same table rows as Python does, so it answers without a kernel; its
traits `byte` and `format` follow what is shown, both ways.
"""

from __future__ import annotations

import math
from typing import Any

import anywidget
import traitlets

from mlalab.fp8 import FORMATS
from mlalab.viz.page_data import static_text


def format_rows() -> list[dict[str, Any]]:
    """The table of formats as bits.js reads it."""
    return [
        {
            "name": fmt.name,
            "exponentBits": fmt.exponent_bits,
            "mantissaBits": fmt.mantissa_bits,
            "bias": fmt.bias,
            "nan": sorted(fmt.nan_codes),
            "infinity": sorted(fmt.infinity_codes),
        }
        for fmt in FORMATS.values()
    ]


class BitsWidget(anywidget.AnyWidget):
    """One byte and the format it is read in.

    Args:
        byte: 0..255.
        format: a name of `mlalab.fp8.FORMATS`.
        source, scale: what was quantised, and the dequantisation scale; shown, not changed.
    """

    _esm = static_text("bits.js")
    _css = static_text("bits.css")
    byte = traitlets.Int(0, min=0, max=255).tag(sync=True)
    format = traitlets.Enum(list(FORMATS), "e4m3fn").tag(sync=True)
    source = traitlets.Float(None, allow_none=True).tag(sync=True)
    scale = traitlets.Float(1.0).tag(sync=True)
    formats: Any = traitlets.List(read_only=True).tag(sync=True)

    @traitlets.default("formats")
    def _formats(self) -> list[dict[str, Any]]:
        return format_rows()

    @property
    def value(self) -> float:
        """What the byte says now, before the scale."""
        return FORMATS[self.format].decode(self.byte)

    @traitlets.validate("source")
    def _source(self, proposal: Any) -> float | None:
        # JSON has no NaN: a message that holds one never arrives.
        value = proposal["value"]
        return None if value is None or not math.isfinite(value) else value
