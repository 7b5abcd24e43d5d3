"""A trace that follows what it is told: change a size, a dtype or a pass, and it is made again.

In plain Python `set` does it; in a running notebook, so do the controls of `widget`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlalab.compile.capture import Mode
from mlalab.compile.config import FLAGS, PassConfig, resolve
from mlalab.env import default_device
from mlalab.errors import ConfigError, MlalabError, PassWarning, first_line
from mlalab.lab import trace
from mlalab.layers.gqa import GQAAttention
from mlalab.layers.kinds import Attention
from mlalab.layers.mla import MLAAttention
from mlalab.layers.options import LayerOptions
from mlalab.passes.driver import check_order
from mlalab.passes.fusion import Pass
from mlalab.passes.pipeline import PIPELINE
from mlalab.records import StepRecord
from mlalab.shapes import AttentionShape
from mlalab.traces import Trace
from mlalab.viz.show import Figure, Pictured

Passes = Sequence[Pass] | Callable[[], Sequence[Pass]]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""What a layer may be built in, by the name shown."""
UNSET = {"dtype": "bfloat16", "kv_cache_dtype": "auto"}
"""What a layer is built in where the state says None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is traced.

    Args:
        model: a preset's name, a Hugging Face directory, a shape, or a layer.
        tokens: decode requests of one token each.
        dtype, kv_cache_dtype: of weights and activations ("bfloat16" unless set), and of the
            cache ("auto" unless set). A layer keeps its own, and both must be None.
        level: decides which passes are on, where `on` does not say.
        mode: "display" interprets the final graph; "inductor" generates code.
        passes: in the order they run, or a function that returns them: it is called for every
            trace, so that passes which a notebook's cell redefined are taken up.
        on: name of a pass → whether it runs, whatever the level says.
        check: run each step's graph and compare, as `Trace.check` does.
    """

    model: str | Path | AttentionShape | Attention = "tiny"
    tokens: int = 8
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    level: str = "O2"
    mode: Mode = "display"
    passes: Passes = PIPELINE
    on: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    check: bool = True

    @property
    def has_options(self) -> bool:
        """Whether the model is still to be built, so that dtypes can be chosen."""
        return not isinstance(self.model, (MLAAttention, GQAAttention))

    def all_passes(self) -> tuple[Pass, ...]:
        """Return the passes, those that are off included.

        Raises:
            ConfigError: something is not a pass, or the order cannot work.
        """
        found = tuple(self.passes() if callable(self.passes) else self.passes)
        check_order(found)
        return found

    def switches(self) -> dict[str, bool]:
        """Return of each pass whether it is on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PassWarning)
            config = resolve(PassConfig(), self.level)
        return {p.name: self.on.get(p.name, config.enabled(p.flags)) for p in self.all_passes()}

    def trace(self) -> Trace:
        """Trace it.

        Raises:
            ConfigError: something in the state cannot be used, or `on` names no pass.
        """
        switches = self.switches()
        if unknown := [name for name in self.on if name not in switches]:
            raise ConfigError(f"No pass is called {unknown[0]!r}; they are {', '.join(switches)}.")
        passes = [p for p in self.all_passes() if switches[p.name]]
        wanted = {flag for p in passes for flag in p.flags}
        offered = {flag for p in self.all_passes() for flag in p.flags}
        flags = {flag: flag in wanted for flag in FLAGS if flag in offered}
        made = trace(
            self.model,
            tokens=self.tokens,
            options=self._options(),
            level=self.level,
            config=PassConfig(**flags),
            passes=passes,
            mode=self.mode,
        )
        return made.check() if self.check else made

    def _options(self) -> LayerOptions | None:
        if not self.has_options:
            if (self.dtype, self.kv_cache_dtype) != (None, None):
                raise ConfigError("A layer is traced as it is: leave out dtype and kv_cache_dtype.")
            return None
        dtype = self.dtype or UNSET["dtype"]
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        return LayerOptions(
            dtype=DTYPES[dtype],
            kv_cache_dtype=self.kv_cache_dtype or UNSET["kv_cache_dtype"],  # type: ignore[arg-type]
            device=default_device(),
        )


class Explorer(Pictured):
    """A state and the latest trace of it that worked. Make one with `explore`.

    A change that cannot be traced is no exception: `error` says in a sentence why, `failure` is
    what was raised, and `trace` stays as it was.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.trace = state.trace()
        self.failure: Exception | None = None
        self.notes: tuple[str, ...] = ()
        """What the latest trace warned of: passes that were asked for and do not run."""
        self.listeners: list[Callable[[], None]] = []
        """Called after every trace, with or without success."""
        self._panel: Any = None

    @property
    def error(self) -> str | None:
        """Why the latest change could not be traced, in one sentence; None where it could."""
        return sentence(self.failure) if self.failure is not None else None

    def set(self, **changes: Any) -> Explorer:
        """Change fields of the state (see `State`) and trace again; without any, just trace again.

        Raises:
            ConfigError: there is no such field.
        """
        _known(changes)
        before, self.state = self.state, dataclasses.replace(self.state, **changes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PassWarning)
            try:
                self.trace, self.failure = self.state.trace(), None
            except Exception as error:  # a pass that is being written may raise anything
                self.failure = error
                if isinstance(error, ConfigError):  # a value that cannot be used is not kept
                    self.state = before
        ours = [w for w in caught if issubclass(w.category, PassWarning)]
        self.notes = tuple(dict.fromkeys(str(w.message) for w in ours))
        for w in caught:
            if w not in ours:
                warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        for listener in self.listeners:
            listener()
        return self

    def switch(self, **on: bool) -> Explorer:
        """Switch passes on or off by name, and trace again."""
        return self.set(on={**self.state.on, **on})

    def why(self) -> str:
        """Explain each fusion of the current trace that did not do all that it might have done."""
        names = [s.name for s in self.trace.steps if s.kind == "fusion" and _left_something(s)]
        names += [name for name, status in self.trace.skipped.items() if status != "disabled"]
        return "\n\n".join(f"{name}\n{self.trace.why(name)}" for name in names)

    def figure(self) -> Figure:
        """Return the picture of the current trace."""
        return self.trace.figure()

    def widget(self) -> Any:
        """Return controls over the state, with what comes of them below; loads ipywidgets."""
        from mlalab.explorer_widget import panel

        self._panel = self._panel or panel(self)
        return self._panel

    def __repr__(self) -> str:
        parts = [repr(self.trace), self.why(), *self.notes]
        if self.error is not None:
            parts.insert(0, f"not traced: {self.error} This is the last trace that worked:")
        return "\n\n".join(part for part in parts if part)


def explore(
    model: str | Path | AttentionShape | Attention = "tiny",
    *,
    passes: Passes = PIPELINE,
    **state: Any,
) -> Explorer:
    """Trace a model and return what traces it again on every change.

    Args:
        model, passes, state: the fields of `State`.

    Raises:
        MlalabError: the first trace did not work; what a pass of yours raises comes through.
    """
    _known(state)
    return Explorer(State(model=model, passes=passes, **state))


def _known(names: Iterable[str]) -> None:
    fields = [field.name for field in dataclasses.fields(State)]
    if unknown := [name for name in names if name not in fields]:
        raise ConfigError(f"Nothing is called {unknown[0]!r} here; set {', '.join(fields)}.")


def _left_something(step: StepRecord) -> bool:
    return step.status != "applied" or bool(step.refusals)


def sentence(error: Exception) -> str:
    """Return what was raised in one line; Dynamo wraps what a pass raises while it compiles."""
    cause = getattr(error, "inner_exception", error)
    said = first_line(cause)
    said = said.partition(": ")[2] if isinstance(cause, MlalabError) else said
    return said if said.endswith(("!", "?")) else f"{said}."
