"""The FP8 inspector: words, pictures and traits, without a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
import traitlets

import mlalab
from mlalab.errors import ConfigError, InputError
from mlalab.fp8 import FORMATS
from mlalab.fp8_errors import store
from mlalab.viz import theme
from mlalab.viz._bytes_picture import _png
from mlalab.viz.bits import ByteView, RowsView, inspect_fp8
from mlalab.viz.card import MARKS

FN = FORMATS["e4m3fn"]


def row_of(count: int = 130) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a row's bytes and its source, with a NaN, a saturated value and a −0."""
    source = torch.linspace(-3, 3, count).bfloat16()
    source[3], source[5], source[7] = torch.nan, 1e6, -0.0
    return store(source, 0.37, FN), source


def texts(svg: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]


class TestByte:
    def test_words(self):
        assert repr(inspect_fp8(0x39, source=1.1)).splitlines() == [
            "0x39 = 0 0111 001 in e4m3fn: 1.125",
            "          fields      kind                      value",
            "e4m3fn    0 0111 001  normal                    1.125",
            "e4m3fnuz  0 0111 001  normal                   0.5625",
            "e5m2      0 01110 01  normal                    0.625",
            "next below 0x38 = 1, next above 0x3A = 1.25",
            "source 1.1, scale 1: read back as 1.125, relative error 2.27%",
        ]

    @pytest.mark.parametrize("fmt", FORMATS)
    def test_every_byte_has_a_picture(self, fmt):
        for byte in range(256):
            figure = inspect_fp8(byte, format=fmt, source=0.3).figure()
            drawn = texts(figure.svg)
            bits = [text for text in drawn if text in ("0", "1")]
            assert len(bits) >= 24
            assert "".join(bits[:8]) == f"{byte:08b}"
            assert len(figure.alt) > 40

    def test_special_codes_are_said_and_have_a_shape(self):
        view = inspect_fp8(0x80, format="e4m3fnuz")
        svg = view.figure().svg
        assert texts(svg).count("× NaN") == 1
        assert texts(svg).count("−0 (negative)") == 2
        assert svg.count("stroke-dasharray=") == 2
        assert "NaN has no neighbours" in texts(svg)
        assert "NaN in e4m3fnuz" in view.figure().alt
        assert "-0 in e4m3fn" in view.figure().alt

    def test_a_source_beyond_the_last_value(self):
        view = inspect_fp8(0x7E, source=300.0, scale=0.37)
        assert view.error == pytest.approx(abs(448 * 0.37 - 300) / 300)
        assert "source 300 ÷ 0.37, error 44.75%" in texts(view.figure().svg)

    @pytest.mark.parametrize(
        ("source", "error"), [(None, None), (0.0, float("inf")), (1.0, 0.0), (-1.0, 2.0)]
    )
    def test_errors(self, source, error):
        assert inspect_fp8(0x38, source=source).error == error

    @pytest.mark.parametrize("byte", [256, -1, 1.0, "0x38", None])
    def test_what_is_no_byte_is_refused(self, byte):
        with pytest.raises(InputError, match=f"integer in 0..255, got {byte!r}"):
            inspect_fp8(byte)

    @pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan")])
    def test_what_is_no_scale_is_refused(self, scale):
        with pytest.raises(InputError, match="A scale is a positive number"):
            inspect_fp8(0x38, source=1.0, scale=scale)

    def test_refusals(self):
        with pytest.raises(ConfigError, match="e3m4"):
            inspect_fp8(1, format="e3m4")


class TestRows:
    def test_words(self):
        stored, source = row_of()
        view = inspect_fp8(stored, source=source, scale=0.37)
        assert isinstance(view, RowsView)
        text = repr(view)
        assert text.startswith("130 bytes as e4m3fn\nmagnitudes from ")
        assert "; NaN 1, at the limit 1, negative zero 1\n" in text
        assert view.errors.saturated == 1

    def test_cells_and_marks(self):
        stored, source = row_of()
        svg = inspect_fp8(stored, source=source, scale=0.37).figure().svg
        assert svg.count("<image ") == 2 * 3  # 130 bytes in lines of 64, magnitude and error
        for path, colour in MARKS.values():
            assert svg.count(f'd="{path}" fill="none" stroke="{colour}"') == 2 + 1  # and a legend

    @pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 4, 7), (0,), (2, 0)])
    def test_odd_sizes(self, shape):
        stored = torch.full(shape, 0x38, dtype=torch.uint8)
        if stored.numel():
            assert ElementTree.fromstring(inspect_fp8(stored).figure().svg) is not None
        else:
            with pytest.raises(InputError, match="1 to 64 rows"):
                inspect_fp8(stored)

    def test_a_block_is_small_enough_for_a_notebook(self):
        block = torch.randint(256, (16, 576), dtype=torch.uint8)
        assert len(inspect_fp8(block, source=torch.randn(16, 576)).figure().svg) < 100_000

    def test_at_is_one_byte_with_its_source(self):
        stored, source = row_of()
        view = inspect_fp8(stored, source=source, scale=0.37).at(9)
        assert view == ByteView(int(stored[9]), FN, float(source[9]), 0.37)
        block = stored.view(10, 13)
        assert inspect_fp8(block).at(1, 2).byte == int(block[1, 2])

    def test_a_typed_tensor_brings_its_format(self):
        fnuz = torch.full((4,), 0x80, dtype=torch.uint8).view(torch.float8_e4m3fnuz)
        assert inspect_fp8(fnuz).counts()["NaN"] == 4
        assert inspect_fp8(fnuz, format="e4m3fn").counts()["negative zero"] == 4

    def test_refusals(self):
        with pytest.raises(InputError, match=r"64 rows of bytes, got a tensor \[65, 8\]"):
            inspect_fp8(torch.zeros(65, 8, dtype=torch.uint8))
        with pytest.raises(InputError, match=r"got torch\.float32"):
            inspect_fp8(torch.zeros(8))
        with pytest.raises(InputError, match="their source"):
            inspect_fp8(torch.zeros(8, dtype=torch.uint8), source=torch.zeros(7))


def test_a_line_of_cells_is_a_png():
    data = _png(bytes([0, 1, 2]), bytes(9))
    assert data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")


def test_marks_have_contrast_on_the_card():
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        wide = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(a * b for a, b in zip(wide, (0.2126, 0.7152, 0.0722), strict=True))

    for _, colour in MARKS.values():
        assert (luminance(theme.CARD) + 0.05) / (luminance(colour) + 0.05) >= 4.5


class TestWidget:
    def test_traits(self):
        widget = mlalab.inspect_fp8(0x38, source=0.4, scale=0.37).widget()
        assert (widget.byte, widget.format, widget.value) == (0x38, "e4m3fn", 1.0)
        assert (widget.source, widget.scale) == (0.4, 0.37)
        seen = []
        widget.observe(lambda change: seen.append(change.new), ["byte", "format"])
        widget.byte, widget.format = 0x80, "e4m3fnuz"
        assert seen == [0x80, "e4m3fnuz"]
        assert widget.value != widget.value  # NaN

    def test_a_message_from_the_browser(self):
        widget = inspect_fp8(0).widget()
        widget.set_state({"byte": 0xB8, "format": "e5m2"})
        assert widget.value == -0.5

    def test_synced_traits_and_the_table(self):
        widget = inspect_fp8(0).widget()
        assert {"byte", "format", "formats", "source", "scale"} <= set(widget.get_state())
        for row, fmt in zip(widget.formats, FORMATS.values(), strict=True):
            assert row["name"] == fmt.name
            assert set(row["nan"]) == fmt.nan_codes
            assert (row["exponentBits"], row["bias"]) == (fmt.exponent_bits, fmt.bias)

    @pytest.mark.parametrize(("name", "value"), [("byte", 256), ("byte", -1), ("format", "e3m4")])
    def test_wrong_values_are_refused(self, name, value):
        with pytest.raises(traitlets.TraitError):
            setattr(inspect_fp8(0).widget(), name, value)

    def test_a_source_that_json_cannot_hold(self):
        assert inspect_fp8(0x7F, source=float("nan")).widget().source is None

    def test_the_script_asks_for_nothing(self):
        widget = inspect_fp8(0).widget()
        for text in (widget._esm, widget._css):
            assert not re.search(r"https?:|\bimport\b|@import|\burl\(|fetch", text)


def test_anywidget_waits_for_the_widget():
    code = (
        "import sys, mlalab; view = mlalab.inspect_fp8(56); view.figure();"
        "print([m for m in ('anywidget', 'ipywidgets', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
