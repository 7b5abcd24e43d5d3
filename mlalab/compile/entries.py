"""One compiled graph and what the passes did to it, also when it comes from a compile cache.

A compile cache hands out the finished code, and no pass runs. What the passes did the first time is
therefore kept beside it; where that is lost, the cache is not used.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from mlalab.compile import inductor
from mlalab.compile.capture import Mode
from mlalab.compile.captured import Piece
from mlalab.errors import TraceError
from mlalab.passes.driver import PassDriver, PassOutcome
from mlalab.passes.fingerprint import fingerprint
from mlalab.records import MatchRecord, Refusal, StepStatus
from mlalab.trace_files import tuples, write_whole


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A graph that can be called with flat inputs, and what became of each pass."""

    call: Callable[..., Any]
    outcomes: tuple[PassOutcome, ...]
    cached: bool = False
    """Whether the code came from the compile cache."""
    partitions: int = 1
    """Pieces that the graph was cut into for CUDA graphs."""
    pieces: tuple[Piece, ...] = ()
    """Those of them that may be captured."""


_BEST: Sequence[StepStatus] = (
    *("applied", "refused", "no match", "out of range", "not decode only", "disabled"),
)
"""What is said of a pass that fared differently in the pieces of a graph: the first of these."""

_INNER: Mapping[Mode, Callable[..., Any]] = {
    "display": inductor.interpret,
    "inductor": inductor.generate_code,
}


def compile_entry(
    gm: fx.GraphModule, inputs: Sequence[Any], driver: PassDriver, mode: Mode, cache: bool
) -> Entry:
    """Compile a Dynamo graph under `driver`.

    Args:
        inputs: real tensors for static shapes; fake ones, with symbols, for any size.
        cache: let torch's compile cache serve it.
    """
    inner = _INNER[mode]

    def compiled(*, cache: bool) -> Callable[..., Any]:
        with inductor.configured(driver, cache=cache):
            return inductor.compile_with(copy.deepcopy(gm), inputs, inner)

    if mode == "display" or not cache:
        return Entry(compiled(cache=False), driver.outcomes or ())
    path = inductor.cache_folder() / "mlalab" / f"{_key(gm, inputs, driver)}.json"
    call = compiled(cache=True)
    if driver.outcomes is not None:
        _save(path, driver.outcomes)
        return Entry(call, driver.outcomes)
    outcomes = _load(path)
    if outcomes is not None:
        return Entry(call, outcomes, cached=True)
    return Entry(compiled(cache=False), driver.outcomes or ())


def merged(
    call: Callable[..., Any], entries: Sequence[Entry], partitions: int, pieces: tuple[Piece, ...]
) -> Entry:
    """Return one entry for a graph that was compiled piece by piece.

    A pass counts as applied where it was in any piece; its matches are those of all.
    """
    passes = []
    for outcomes in zip(*(entry.outcomes for entry in entries), strict=True):
        status = min((x.status for x in outcomes), key=_BEST.index)
        passes.append(
            dataclasses.replace(
                outcomes[0],
                status=status,
                matches=tuple(match for x in outcomes for match in x.matches),
                refusals=tuple(refusal for x in outcomes for refusal in x.refusals),
                seconds=sum(x.seconds for x in outcomes),
            )
        )
    cached = all(entry.cached for entry in entries)
    return Entry(call, tuple(passes), cached, partitions, pieces)


def _key(gm: fx.GraphModule, inputs: Sequence[Any], driver: PassDriver) -> str:
    kinds = [
        (str(x.dtype), str(tuple(x.shape)), str(x.device)) if isinstance(x, Tensor) else str(x)
        for x in inputs
    ]
    # Without the source lines that a readable print has: torch's cache does not know them either.
    text = [str(m.graph) for m in gm.modules() if isinstance(m, fx.GraphModule)]
    return fingerprint(driver.uuid(), text, kinds)


def _save(path: Path, outcomes: Sequence[PassOutcome]) -> None:
    # Where it cannot be written the next process compiles again.
    with contextlib.suppress(OSError, TraceError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps([dataclasses.asdict(x) for x in outcomes]))


def _load(path: Path) -> tuple[PassOutcome, ...] | None:
    """Read what `_save` wrote, or return None when it is not there whole."""
    try:
        return tuple(_outcome(x) for x in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _outcome(record: dict[str, Any]) -> PassOutcome:
    matches, refusals = record.pop("matches"), record.pop("refusals")
    return PassOutcome(
        **record,
        matches=tuple(MatchRecord(**tuples(m)) for m in matches),
        refusals=tuple(Refusal(**tuples(r)) for r in refusals),
    )
