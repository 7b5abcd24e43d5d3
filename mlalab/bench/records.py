"""Finished benchmark runs, read back: those that come along, by name, and any file of yours.

Everything that quotes a measured time reads it here, so that it cannot part from its provenance.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlalab.bench.cells import CellResult, provenance
from mlalab.bench.report import FORMAT, Limits, ratios
from mlalab.errors import ConfigError

_FOLDER = Path(__file__).parent / "recorded"
_ENDING = "_decode_prep.json"


@dataclass(frozen=True, slots=True)
class Record:
    """One run of the benchmark.

    Args:
        name: of a record that comes along, or the path it was read from.
        machine: what it was measured with, and when.
        limits: what the machine itself can do, measured in the same run.
        results: the cells.
    """

    name: str
    machine: Mapping[str, str]
    limits: Limits
    results: tuple[CellResult, ...]

    @property
    def provenance(self) -> str:
        """GPU, date and torch, to stand beside every number."""
        return provenance(self.machine)

    @property
    def heads(self) -> tuple[int, ...]:
        """Every N that was measured, ascending."""
        return tuple(sorted({result.spec.heads for result in self.results}))

    def over(self, older: Record | None) -> Record:
        """Return this record with the cells of an older one of the same machine that it lacks."""
        mine = {result.spec for result in self.results}
        rest = [r for r in older.results if r.spec not in mine] if older else []
        return dataclasses.replace(self, results=(*rest, *self.results))

    def timed(self, heads: int, format: str) -> list[CellResult]:
        """Return the cells of one N and format whose ratios mean something, by tokens.

        Each passed every check and has times of one launch, of two and of a copy; another baseline
        may have failed.
        """
        found = [r for r in self.results if (r.spec.heads, r.spec.format) == (heads, format)]
        return sorted((r for r in found if ratios(r, self.limits)), key=lambda r: r.spec.tokens)

    def failed(self, heads: int, format: str) -> dict[int, str]:
        """Return the cells of one N and format that `timed` leaves out: tokens → why."""
        found = [r for r in self.results if (r.spec.heads, r.spec.format) == (heads, format)]
        untimed = [r for r in found if not ratios(r, self.limits)]
        reasons = {r.spec.tokens: "; ".join(r.troubles) or "it was not timed" for r in untimed}
        return dict(sorted(reasons.items()))


def names() -> tuple[str, ...]:
    """Return the names of the records that come along."""
    return tuple(sorted(p.name.removesuffix(_ENDING) for p in _FOLDER.glob(f"*{_ENDING}")))


def load(name: str) -> Record:
    """Read the record called `name`, or the file that `mlalab bench --out` wrote at that path.

    Raises:
        ConfigError: no such record or file, or a file that holds no times.
    """
    if name in names():
        return _shipped(name)
    if not Path(name).is_file():
        raise ConfigError(
            f"{name!r} is neither a record that comes along ({', '.join(names())}) nor a file that "
            f"`python -m mlalab bench decode-prep --out FILE` wrote."
        )
    return _read(name, Path(name))


@functools.cache
def _shipped(name: str) -> Record:
    return _read(name, _FOLDER / f"{name}{_ENDING}")


def _read(name: str, path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ConfigError(
                f"{path} has format {content['format']!r}; this mlalab reads {FORMAT!r}."
            )
        if content["limits"] is None:
            raise ConfigError(f"{path} holds checks and no times; run the bench on a GPU.")
        results = tuple(CellResult.from_json(cell) for cell in content["cells"])
        record = Record(name, content["machine"], Limits(**content["limits"]), results)
        _ = record.provenance  # raises where a number could not say where it comes from
        return record
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a benchmark that mlalab saved ({error}).") from error
