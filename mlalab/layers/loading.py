"""Load one attention layer of a real model from a Hugging Face directory.

Only that layer's tensors are read, however large the checkpoint. The layer is built after every
tensor has been found, read and checked, so that a bad checkpoint leaves nothing half-built.

    layer = load_attention("DeepSeek-V3", layer=3, options=LayerOptions(dtype=torch.bfloat16))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlalab.errors import CheckpointError
from mlalab.layers.hf_config import HFConfig, read_json
from mlalab.layers.kinds import Attention, attention_of
from mlalab.layers.options import LayerOptions
from mlalab.shapes import AttentionShape, GQAShape

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Files of the bare base model (no language-model head) have names without "model.".
_PREFIXES = ("model.", "")
_FP8 = torch.float8_e4m3fn


def read_shape(model_dir: str | os.PathLike[str]) -> AttentionShape:
    """Return the attention sizes of the model in `model_dir`, from its `config.json` alone.

    Raises:
        CheckpointError: no such file, or a model, rope or size that is not supported.
    """
    return HFConfig(Path(model_dir)).shape()


def load_attention(
    model_dir: str | os.PathLike[str],
    layer: int = 0,
    *,
    options: LayerOptions | None = None,
) -> Attention:
    """Return attention layer number `layer` of the model in `model_dir`, all heads of it.

    Weights are converted to `options.dtype`; block-quantised FP8 weights are dequantised first.

    Args:
        model_dir: holds `config.json` and `model.safetensors`, or shards and their index.

    Raises:
        CheckpointError: something is missing, damaged or not supported.
    """
    options = options or LayerOptions()
    config = HFConfig(Path(model_dir))
    shape, block = config.shape(), config.fp8_block()
    if not 0 <= layer < shape.num_layers:
        config.refuse(
            f"the model has no layer {layer}; its {shape.num_layers} layers are "
            f"0..{shape.num_layers - 1}."
        )
    reader = _Reader(Path(model_dir), _tensor_files(Path(model_dir)), block)
    name = f"layers.{layer}.self_attn"
    prefix = reader.prefix_of(name)
    weights = {
        parameter: torch.cat(
            [
                reader.read(f"{prefix}{name}.{part}", size).to(options.dtype)
                for part, size in _parts(shape, parameter, size).items()
            ]
        )
        for parameter, size in _parameter_sizes(shape).items()
    }
    attention = attention_of(shape, f"model.{name}", options)
    attention.load_state_dict(weights)
    return attention


def _parameter_sizes(shape: AttentionShape) -> dict[str, tuple[int, ...]]:
    """Return the name and size of every weight of such a layer, without allocating any."""
    no_rope = replace(shape, rope=replace(shape.rope, kind="none"))
    empty = attention_of(no_rope, "", LayerOptions(device="meta"))
    return {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}


def _parts(
    shape: AttentionShape, parameter: str, size: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return name and size of the checkpoint's tensors that make up a parameter, joined by rows."""
    module, _, kind = parameter.partition(".")
    if module != "qkv_proj" or not isinstance(shape, GQAShape):
        return {parameter: size}
    rows = {"q_proj": shape.q_size, "k_proj": shape.kv_size, "v_proj": shape.kv_size}
    return {f"{part}.{kind}": (count, *size[1:]) for part, count in rows.items()}


def _tensor_files(model_dir: Path) -> Mapping[str, Path]:
    """Return which file holds each tensor of the checkpoint."""
    single, index = model_dir / _SINGLE, model_dir / _INDEX
    if single.is_file():
        with _open(single) as file:
            return dict.fromkeys(file.keys(), single)
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"'{index}' has no weight_map; download it again.")
        return {tensor: model_dir / str(shard) for tensor, shard in shards.items()}
    old = sorted(path.name for path in model_dir.glob("*.bin"))
    hint = (
        f" It has {old[0]}: convert it with transformers, from_pretrained then save_pretrained."
        if old
        else " Download the weights too."
    )
    raise CheckpointError(f"'{model_dir}' has neither {_SINGLE} nor {_INDEX}.{hint}")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(
            f"'{path}' is missing, and '{_INDEX}' next to it names it; download it."
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); download it again.") from error


@dataclass(frozen=True, slots=True)
class _Reader:
    model_dir: Path
    files: Mapping[str, Path]
    fp8_block: tuple[int, int] | None

    def prefix_of(self, name: str) -> str:
        """Return what stands before `name` in this checkpoint."""
        for prefix in _PREFIXES:
            if any(tensor.startswith(f"{prefix}{name}.") for tensor in self.files):
                return prefix
        return _PREFIXES[0]

    def read(self, name: str, expected: tuple[int, ...]) -> Tensor:
        """Return tensor `name`, dequantised, after comparing its size with `expected`."""
        tensor = self._read_raw(name, expected)
        if tensor.dtype != _FP8:
            if not tensor.is_floating_point() or tensor.element_size() == 1:
                self._refuse(name, f"has type {tensor.dtype}, which is not supported")
            return tensor
        if self.fp8_block is None:
            self._refuse(name, "is FP8, and config.json has no quantization_config that says how")
        return dequantize_blocks(tensor, self._read_scale(name, expected), self.fp8_block)

    def _read_scale(self, name: str, weight_size: tuple[int, ...]) -> Tensor:
        assert self.fp8_block is not None
        blocks = tuple(-(-n // b) for n, b in zip(weight_size, self.fp8_block, strict=True))
        return self._read_raw(f"{name}_scale_inv", blocks)

    def _read_raw(self, name: str, expected: tuple[int, ...]) -> Tensor:
        if name not in self.files:
            self._refuse(name, "is missing")
        with _open(self.files[name]) as file:
            if name not in file.keys():  # noqa: SIM118  safe_open's handle is no dict
                self._refuse(name, f"is missing from '{self.files[name].name}'")
            found = tuple(file.get_slice(name).get_shape())
            if found != expected:
                self._refuse(
                    name, f"has size {list(found)} where config.json says {list(expected)}"
                )
            return file.get_tensor(name)

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise CheckpointError(
            f"'{self.model_dir}': tensor {name} {problem}; check that config.json and the "
            f"weights come from the same checkpoint."
        )


def dequantize_blocks(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Return `weight · scale` in fp32, one scale per block of rows and columns.

    Args:
        weight: `[rows, columns]` FP8; the last block of either side may be cut short.
        scale: `[ceil(rows / block[0]), ceil(columns / block[1])]`.
    """
    rows, columns = weight.shape
    wide = scale.float().repeat_interleave(block[0], 0)[:rows]
    return weight.float() * wide.repeat_interleave(block[1], 1)[:, :columns]
