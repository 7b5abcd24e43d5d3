"""A sweep in a live notebook: sliders, the picture they change, and the configuration to copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from html import escape
from typing import Any, Protocol

from mlalab.errors import MlalabError
from mlalab.sweeps.spec import SweepResult
from mlalab.viz.show import Figure, figure_html
from mlalab.viz.sweep import cells_text

_SLIDERS = {
    "max_num_seqs": (1, 1024),
    "num_speculative_tokens": (0, 8),
    "max_num_batched_tokens": (1, 32768),
}
_CONFIG = '<pre style="user-select:all;margin:0" title="a click selects all">{}</pre>'


class Sweepable(Protocol):
    """What the sliders need of a sweep."""

    watchers: list[Callable[[], None]]
    result: SweepResult
    failed: Mapping[int, str]

    @property
    def choices(self) -> Mapping[str, tuple[Any, ...]]:
        """Field → what there is to choose from."""

    @property
    def why_not_measure(self) -> str | None:
        """Why nothing can be measured on this machine."""

    def set(self, **changes: Any) -> Any:
        """Change fields of the spec."""

    def figure(self) -> Figure:
        """The picture."""

    def measuring(self) -> Generator[tuple[int, int], None, None]:
        """Measure here; yields (finished, all)."""


def sweep_widget(sweep: Sweepable) -> Any:
    """Return the widget of a sweep; what the sliders say, `sweep.result` holds too."""
    import ipywidgets

    controls, said = _controls(sweep), ipywidgets.HTML()
    picture, config = ipywidgets.HTML(), ipywidgets.HTML()

    def redraw() -> None:
        figure = sweep.figure()
        picture.value = figure_html(figure.svg, figure.alt, figure.caption)
        config.value = _CONFIG.format(escape(sweep.result.config))
        _follow(controls, sweep, change)

    def change(event: Mapping[str, Any]) -> None:
        name = next(n for n, control in controls.items() if control is event["owner"])
        try:
            sweep.set(**{name: event["new"]})
            said.value = ""
        except MlalabError as error:
            said.value = escape(str(error))
            redraw()

    for control in controls.values():
        control.observe(change, "value")
    redraw()
    sweep.watchers.append(redraw)
    return ipywidgets.VBox([*controls.values(), _measuring(sweep), said, picture, config])


def _follow(
    controls: Mapping[str, Any], sweep: Sweepable, change: Callable[[Mapping[str, Any]], None]
) -> None:
    """Make every control say what the sweep is set to, without taking that for a change."""
    for name, control in controls.items():
        value, options = getattr(sweep.result.spec, name), sweep.choices.get(name)
        # New options reset a dropdown to the first of them.
        control.unobserve(change, "value")
        if options is None:
            control.max = max(control.max, value)
        elif control.options != options:
            control.options = options
        control.value = value
        control.observe(change, "value")


def _controls(sweep: Sweepable) -> dict[str, Any]:
    import ipywidgets

    look = {
        "style": {"description_width": "14em"},
        "layout": {"width": "36em"},
    }
    spec = sweep.result.spec
    sliders = {
        name: ipywidgets.IntSlider(
            value=getattr(spec, name),
            min=least,
            max=max(most, getattr(spec, name)),
            description=name,
            continuous_update=False,
            **look,
        )
        for name, (least, most) in _SLIDERS.items()
    }
    return sliders | {
        name: ipywidgets.Dropdown(
            options=options, value=getattr(spec, name), description=name, **look
        )
        for name, options in sweep.choices.items()
    }


def _measuring(sweep: Sweepable) -> Any:
    """Return the buttons that measure here and cancel, and a bar that tells how far it is."""
    import ipywidgets

    start = ipywidgets.Button(description="measure here", disabled=bool(sweep.why_not_measure))
    cancel = ipywidgets.Button(description="cancel", disabled=True)
    bar = ipywidgets.IntProgress(min=0, layout={"width": "18em"})
    said = ipywidgets.HTML(escape(sweep.why_not_measure or ""))
    asked = threading.Event()

    def work() -> None:
        try:
            with closing(sweep.measuring()) as steps:
                for bar.value, bar.max in steps:
                    if asked.is_set():
                        break
            said.value = escape(f"measured {cells_text(bar.value, bar.max, sweep.failed)}")
        except Exception as error:
            # A thread has nobody to raise to: whatever went wrong is told where it was asked for.
            said.value = escape(f"{type(error).__name__}: {error}")
        start.disabled, cancel.disabled = False, True

    def begin(_: Any) -> None:
        asked.clear()
        start.disabled, cancel.disabled = True, False
        bar.value, said.value = 0, "measuring …"
        # On a thread of its own, or the kernel would not hear the other button.
        threading.Thread(target=work, daemon=True).start()

    def stop(_: Any) -> None:
        asked.set()
        cancel.disabled, said.value = True, "stopping after this cell …"

    start.on_click(begin)
    cancel.on_click(stop)
    return ipywidgets.VBox([ipywidgets.HBox([start, cancel, bar]), said])
