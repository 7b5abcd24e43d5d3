"""The controls of an explorer, in a running notebook.

Nothing is computed here: a control that moves calls `Explorer.set`, and what the explorer then
holds is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, get_args

import ipywidgets as widgets

from mlalab.cache import KVCacheDtype
from mlalab.compile.capture import Mode
from mlalab.compile.config import Level
from mlalab.explorer import DTYPES, UNSET
from mlalab.passes.fingerprint import fingerprint
from mlalab.shapes import PRESETS
from mlalab.viz.text import step_table

if TYPE_CHECKING:
    from mlalab.explorer import Explorer
    from mlalab.traces import Trace

MAX_TOKENS = 256
_PRE = "margin:0;line-height:1.35;font-size:12px;overflow-x:auto;background:transparent"
_FAILED = "border-left:4px solid #d1242f;padding-left:8px"


class Panel(widgets.VBox):
    """Controls, a line of text, the table of steps, why passes did not match, and the stepper."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self._syncing = False
        self._code = _code_of(explorer)
        self.controls = _controls(explorer)
        self.passes: dict[str, Any] = {}
        self.switches = widgets.HBox(layout={"flex_flow": "row wrap"})
        self.again = widgets.Button(description="Trace again", icon="refresh")
        self.message, self.table, self.why = (widgets.HTML() for _ in range(3))
        self.stepper: Any = None
        for name, control in self.controls.items():
            control.observe(self._setter(name), "value")
        self.again.on_click(lambda _: self._set())
        explorer.listeners.append(self.refresh)
        head = widgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        self._parts = (head, self.switches, self.again, self.message, self.table, self.why)
        super().__init__(self._parts)
        self.refresh()

    def refresh(self) -> None:
        """Show what the explorer holds now; the controls follow."""
        explorer = self.explorer
        self._code = _code_of(explorer)
        self._syncing = True
        try:
            self._show_state()
        finally:
            self._syncing = False
        if explorer.error:
            self._say(f"{explorer.error} Below is the last trace that worked.", style=_FAILED)
        else:
            self._say(*explorer.notes)
        if self.stepper is None or self.stepper.trace is not explorer.trace:
            self._step_through(explorer.trace)
        self.table.value = _pre(step_table(explorer.trace.steps))
        self.why.value = _pre(explorer.why())

    def _step_through(self, trace: Trace) -> None:
        """Put a stepper of `trace` in place of the one before, on the step that it showed."""
        before, self.stepper = self.stepper, trace.widget()
        if before is not None:
            self.stepper.index = min(before.index, len(trace) - 1)
        self.children = (*self._parts, self.stepper)
        if before is not None:
            before.close()

    def follow(self, *_: object) -> None:
        """Trace again when the code of a pass changed, as after a cell that redefined it."""
        if _code_of(self.explorer) != self._code:
            self._set()

    def _show_state(self) -> None:
        state = self.explorer.state
        for name, control in self.controls.items():
            value = getattr(state, name)
            if name != "tokens":
                value = UNSET.get(name) if value is None else value
                control.value = value if value in control.options else control.value
            elif type(value) is int:  # what is no number cannot be traced, nor shown
                control.max = max(control.max, value)
                control.value = value
        if self.explorer.failure is None:
            self._show_switches(state.switches())

    def _show_switches(self, switches: dict[str, bool]) -> None:
        if list(switches) != list(self.passes):
            self.passes = {name: _checkbox(name) for name in switches}
            for name, box in self.passes.items():
                box.observe(self._switcher(name), "value")
            self.switches.children = tuple(self.passes.values())
        for name, on in switches.items():
            self.passes[name].value = on

    def _setter(self, name: str) -> Callable[[Any], None]:
        return lambda change: self._set(**{name: change.new})

    def _switcher(self, name: str) -> Callable[[Any], None]:
        return lambda change: self._set(on={**self._switched(), name: change.new})

    def _set(self, **changes: Any) -> None:
        if not self._syncing:
            self._say("tracing ...")
            self.explorer.set(**{"on": self._switched(), **changes})

    def _switched(self) -> Mapping[str, bool]:
        """Return what `on` says of passes that are there: a cell may have renamed one since."""
        on = self.explorer.state.on
        try:
            names = {p.name for p in self.explorer.state.all_passes()}
        except Exception:  # tracing will raise it again and tell
            return on
        return {name: value for name, value in on.items() if name in names}

    def _say(self, *lines: str, style: str = "") -> None:
        text = "<br>".join(map(escape, lines))
        self.message.value = f'<div role="status" class="mlalab-text" style="{style}">{text}</div>'


def panel(explorer: Explorer) -> Panel:
    """Return the controls; in a notebook, the ones made last also follow edits of the passes."""
    made = Panel(explorer)
    _follow_cells(made)
    return made


_followers: list[Panel] = []
"""The panel that follows what cells define: one, as those of explorers made earlier lie about."""


def _follow_cells(made: Panel) -> None:
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    while _followers:
        shell.events.unregister("post_run_cell", _followers.pop().follow)
    shell.events.register("post_run_cell", made.follow)
    _followers.append(made)


def _controls(explorer: Explorer) -> dict[str, Any]:
    """Return a control for each field of the state that has one."""
    state, found = explorer.state, {}
    if isinstance(state.model, str) and state.model in PRESETS:
        found["model"] = _dropdown("model", tuple(PRESETS), state.model)
    found["tokens"] = widgets.IntSlider(
        *(state.tokens, 0, max(MAX_TOKENS, state.tokens)),
        description="tokens",
        continuous_update=False,
    )
    if state.has_options:
        found["dtype"] = _dropdown("dtype", tuple(DTYPES), state.dtype or UNSET["dtype"])
        caches = get_args(KVCacheDtype)
        cache = state.kv_cache_dtype or UNSET["kv_cache_dtype"]
        found["kv_cache_dtype"] = _dropdown("KV cache", caches, cache)
    found["level"] = _dropdown("level", get_args(Level), state.level)
    found["mode"] = _dropdown("mode", get_args(Mode), state.mode)
    return found


def _dropdown(label: str, options: tuple[str, ...], value: str) -> Any:
    return widgets.Dropdown(
        options=options, value=value, description=label, layout={"width": "220px"}
    )


def _checkbox(name: str) -> Any:
    return widgets.Checkbox(
        description=name, indent=False, layout={"width": "auto", "margin": "2px 12px"}
    )


def _pre(text: str) -> str:
    return f'<pre class="mlalab-text" style="{_PRE}">{escape(text)}</pre>'


def _code_of(explorer: Explorer) -> str | None:
    """Return what changes with the passes' code; None where they cannot be made."""
    try:
        return fingerprint(explorer.state.all_passes())
    except Exception:  # whatever the notebook's function raises, tracing will raise and tell
        return None
