"""Sizes, rope and quantisation of a model, from its Hugging Face `config.json`.

Plain JSON on purpose: importing transformers takes seconds, and its config classes fill in what a
file leaves out. Here a key that is missing, or that would change the rope and is not known, is an
error that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mlalab.errors import CheckpointError, ConfigError
from mlalab.shapes import AttentionShape, GQAShape, MLAShape, RopeSpec

_MLA_MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "kimi_k2")
SUPPORTED_MODEL_TYPES = (*_MLA_MODEL_TYPES, "llama")

# DeepSeek's own code, vLLM and transformers build q_a_layernorm and kv_a_layernorm with their
# class default and never pass them the config's rms_norm_eps, so the same goes here.
_LATENT_NORM_EPS = 1e-6

# config.json → MLAShape
_SIZES: Mapping[str, str] = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "kv_lora_rank": "kv_lora_rank",
    "q_lora_rank": "q_lora_rank",
    "max_position_embeddings": "max_position_embeddings",
    "num_hidden_layers": "num_layers",
}

# config.json → GQAShape
_GQA_SIZES: Mapping[str, str] = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_position_embeddings",
    "num_hidden_layers": "num_layers",
}

_ROPE_KINDS = {"default": "default", "yarn": "yarn", "deepseek_yarn": "yarn"}
_YARN_POSITIVE = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_YARN_NUMBERS = (*_YARN_POSITIVE, "mscale", "mscale_all_dim", "attention_factor")
_YARN_REQUIRED = ("factor", "original_max_position_embeddings")


class HFConfig:
    """A `config.json` that has been read; methods say what it means.

    Args:
        model_dir: a directory that holds `config.json`.

    Raises:
        CheckpointError: no such directory or file, or it holds no JSON object.
    """

    def __init__(self, model_dir: Path) -> None:
        self.path = model_dir / "config.json"
        if not model_dir.is_dir():
            raise CheckpointError(
                f"No model directory at '{model_dir}'; give a local directory. To download a model "
                f"from the Hub: hf download NAME --local-dir DIR."
            )
        if not self.path.is_file():
            raise CheckpointError(
                f"'{model_dir}' has no config.json; point at the directory that holds it next to "
                f"the .safetensors files."
            )
        self.values = read_json(self.path)

    def refuse(self, problem: str) -> NoReturn:
        """Raise a CheckpointError that starts with the file's path."""
        raise CheckpointError(f"'{self.path}': {problem}")

    def shape(self) -> AttentionShape:
        """Return the sizes of the model's attention layers."""
        model_type = self.values.get("model_type")
        if model_type not in SUPPORTED_MODEL_TYPES:
            self.refuse(
                f"model_type {model_type!r} is not supported; "
                f"supported: {', '.join(SUPPORTED_MODEL_TYPES)}."
            )
        is_mla = model_type in _MLA_MODEL_TYPES
        sizes = self._sizes(_SIZES if is_mla else _GQA_SIZES)
        rope, bias = self._rope(), self._flag("attention_bias", False)
        try:
            if is_mla:
                return MLAShape(
                    **sizes, rope=rope, rms_norm_eps=_LATENT_NORM_EPS, attention_bias=bias
                )
            return GQAShape(**sizes, **self._heads(), rope=rope, attention_bias=bias)
        except ConfigError as error:
            raise CheckpointError(f"'{self.path}': {error}") from error

    def _sizes(self, names: Mapping[str, str]) -> dict[str, Any]:
        missing = [key for key in names if key not in self.values]
        if missing:
            self.refuse(f"key {missing[0]!r} is missing; take the model's own config.json.")
        return {field: self.values[key] for key, field in names.items()}

    def _heads(self) -> dict[str, Any]:
        """Return the sizes that old files of Llama leave out, as its code fills them in."""
        heads, head_dim = self.values["num_attention_heads"], self.values.get("head_dim")
        if head_dim is None and isinstance(heads, int) and heads > 0:
            head_dim = self.values["hidden_size"] // heads
        kv_heads = self.values.get("num_key_value_heads")
        return {"num_kv_heads": heads if kv_heads is None else kv_heads, "head_dim": head_dim}

    def fp8_block(self) -> tuple[int, int] | None:
        """Return the block of weights that shares a scale, or None for plain weights."""
        quantization = self.values.get("quantization_config")
        if quantization is None:
            return None
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        block = quantization.get("weight_block_size") if method == "fp8" else None
        sides = block if isinstance(block, list) else []
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            self.refuse(
                f"quantization_config {quantization!r} is not supported: only quant_method 'fp8' "
                f"with a weight_block_size of two sizes is; take an unquantised checkpoint."
            )
        return sides[0], sides[1]

    def _flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(f"{key} must be true or false, got {value!r}.")
        return value

    def _rope(self) -> RopeSpec:
        name, rope = self._rope_dict()
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in _ROPE_KINDS:
            self.refuse(
                f"{name} asks for rope kind {kind!r}, which is not supported; "
                f"supported: {', '.join(_ROPE_KINDS)}."
            )
        is_yarn = _ROPE_KINDS[kind] == "yarn"
        known = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
        known |= {*_YARN_NUMBERS, "truncate"} if is_yarn else set()
        for key in rope:
            if key not in known:
                self.refuse(
                    f"{name} has key {key!r}, which rope kind {kind!r} does not know; "
                    f"known: {', '.join(sorted(known))}."
                )
        if rope.get("partial_rotary_factor", 1) != 1:
            self.refuse(f"{name} has partial_rotary_factor other than 1, which is not supported.")
        theta = rope.get("rope_theta", self.values.get("rope_theta", 10000.0))
        # Of DeepSeek's only V3's code has the switch; V2 always pairs neighbours, Llama never.
        model_type = self.values["model_type"]
        has_switch = model_type not in ("deepseek_v2", "llama")
        interleaved = self._flag("rope_interleave", True) if has_switch else model_type != "llama"
        return RopeSpec(
            kind="yarn" if is_yarn else "default",
            theta=float(self._number("rope_theta", theta, positive=True)),
            is_neox=not interleaved,
            **(self._yarn(name, rope) if is_yarn else {}),
        )

    def _rope_dict(self) -> tuple[str, dict[str, Any]]:
        """Return the rope parameters and the key that holds them: the v5 name or the old one."""
        found = {
            key: self.values[key]
            for key in ("rope_parameters", "rope_scaling")
            if self.values.get(key) is not None
        }
        if len(found) == 2 and found["rope_parameters"] != found["rope_scaling"]:
            self.refuse("rope_parameters and rope_scaling disagree; remove one of them.")
        for name, rope in found.items():
            if not isinstance(rope, dict):
                self.refuse(f"{name} must be an object or null, got {rope!r}.")
            return name, rope
        return "rope_parameters", {}

    def _yarn(self, name: str, rope: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in rope.items() if value is not None}
        for key in _YARN_REQUIRED:
            if key not in given:
                self.refuse(f"{name} lacks {key!r}, which rope kind 'yarn' needs.")
        fields = {
            key: self._number(key, given[key], positive=key in _YARN_POSITIVE)
            for key in _YARN_NUMBERS
            if key in given
        }
        if "truncate" in given:
            if not isinstance(given["truncate"], bool):
                self.refuse(f"truncate must be true or false, got {given['truncate']!r}.")
            fields["truncate"] = given["truncate"]
        return fields

    def _number(self, key: str, value: Any, *, positive: bool) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (positive and value <= 0):
            self.refuse(f"{key} must be a {'positive ' if positive else ''}number, got {value!r}.")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        CheckpointError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' is not valid JSON ({error}); download it again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' holds no JSON object; download it again.")
    return value
