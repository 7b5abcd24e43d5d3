"""What a layer is built with, and where defaults come from."""

import pytest

from mlalab.errors import ConfigError
from mlalab.layers.mla import MLAAttention
from mlalab.layers.options import LayerOptions
from mlalab.shapes import preset

NAME = "MLALAB_MLA_EXPOSED_SPLIT"


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True)])
def test_the_environment_sets_the_default_of_exposed(value, expected, monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    if value is not None:
        monkeypatch.setenv(NAME, value)
    assert LayerOptions().exposed == expected
    assert LayerOptions(exposed=not expected).exposed != expected
    layer = MLAAttention(preset("tiny"))
    monkeypatch.setenv(NAME, "nonsense")
    # Read when options are made, and never again.
    assert layer.options.exposed == expected


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv(NAME, "yes")
    with pytest.raises(ConfigError, match="MLALAB_MLA_EXPOSED_SPLIT must be 0 or 1, got 'yes'"):
        LayerOptions()


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ConfigError, match="fusion must be"):
        LayerOptions(fusion="both")
