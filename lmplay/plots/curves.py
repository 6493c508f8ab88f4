"""Curves that runs recorded, also those of the original lmplay; smoothed, and subtracted from each other."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError, UserError
from ..files import user_path
from ..runs.finished import find_below, metric_key, read_fingerprints
from ..runs.recorder import METRICS, read_metrics

KINDS = ('train', 'validation')
X_AXES = ('samples', 'tokens', 'seconds')
TRAIN_TABLE, VALIDATION_TABLE = 'train_stats.csv', 'validate_stats.csv'  # how the original lmplay's files end
Columns = dict[str, np.ndarray]  # name -> (points,) float64, NaN where nothing finite was recorded


@dataclass(eq=False)
class Curves:
    """What one run recorded over training.

    train, validation  name -> values
    source             its directory, or what the paths of its two tables begin with
    fingerprints       of the held-out text it was evaluated on, by name; empty where they are unknown
    domains            domain -> name -> values, of validation alone
    stages             (name, index of its first training point)
    """

    name: str
    train: Columns
    validation: Columns
    source: Path
    domains: dict[str, Columns] = field(default_factory=dict)
    stages: list[tuple[str, int]] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def curve(self, kind: str, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Both columns over increasing x; of points at one x the last. Empty where either was not recorded.

        kind: 'train', 'validation' or a domain; y: a metric, one of the model's with or without 'model/'.
        """
        columns = getattr(self, kind) if kind in KINDS else self.domains[kind]
        y = metric_key(columns, y)
        if x not in columns or y not in columns or np.isnan(columns[y]).all():
            return np.empty(0), np.empty(0)
        known = ~np.isnan(columns[x])
        xs, ys = columns[x][known][::-1], columns[y][known][::-1]
        xs, first = np.unique(xs, return_index=True)
        return xs, ys[first]

    def stage_starts(self, x: str) -> list[tuple[str, float]]:
        """(name, x of its first training point) of each stage; empty where x was not recorded."""
        return [(name, float(self.train[x][index])) for name, index in self.stages if x in self.train]

    @property
    def metrics(self) -> set[str]:
        return (set(self.train) | set(self.validation)) - {*X_AXES, 'step'}

    @property
    def empty(self) -> bool:
        return not self.metrics

    def extent(self, x: str) -> float:
        """The greatest x of any point; 0 where none has one."""
        recorded = [c[x] for c in (self.train, self.validation) if x in c]
        return max((float(np.nanmax(v)) for v in recorded if not np.isnan(v).all()), default=0.0)


def find_curves(path: str | Path) -> list[Curves]:
    """The runs at `path`: a run's directory, a table of the original lmplay, or a directory that holds some.

    Raises DataError where there is none.
    """
    path = user_path(path)
    if path.is_file() and path.name.endswith((TRAIN_TABLE, VALIDATION_TABLE)):
        prefix = str(path).removesuffix(TRAIN_TABLE).removesuffix(VALIDATION_TABLE)
        return [_read_tables(prefix, Path(prefix.rstrip('_')).name)]
    if not path.is_dir():
        raise DataError(
            f"No run at '{path}'. Give a run's directory, a *_{TRAIN_TABLE}, or a directory that holds some."
        )
    if (path / METRICS).is_file():
        return [read_curves(path)]
    runs = [
        read_curves(file.parent, str(file.parent.relative_to(path))) for file in find_below(path, METRICS)
    ]
    for file in find_below(path, f'*{TRAIN_TABLE}'):
        if not (file.parent / METRICS).is_file():
            prefix = str(file).removesuffix(TRAIN_TABLE)
            name = str(Path(prefix.rstrip('_')).relative_to(path)) if Path(prefix) != path else path.name
            runs.append(_read_tables(prefix, name))
    if not runs:
        raise DataError(f"'{path}' holds no run: neither a {METRICS} nor a *_{TRAIN_TABLE}, here or below.")
    return runs


def read_curves(folder: str | Path, name: str | None = None) -> Curves:
    """The curves in a run's directory, named after it unless said otherwise."""
    folder = Path(folder)
    records = read_metrics(folder)
    train, validation = ([r for r in records if r.get('kind') == kind] for kind in KINDS)
    train = _real_tokens(train, validation)
    stages = [
        (str(r['stage']), i)
        for i, r in enumerate(train)
        if 'stage' in r and (i == 0 or r['stage'] != train[i - 1].get('stage'))
    ]
    names = dict.fromkeys(d for r in validation for d in r.get('domains') or {})
    where = [{x: r.get(x) for x in X_AXES} for r in validation]  # the run's tokens, not the domain's
    domains = {
        d: _columns([(r.get('domains') or {}).get(d, {}) | w for w, r in zip(where, validation, strict=True)])
        for d in names
    }
    name = name or folder.resolve().name
    prints = read_fingerprints(folder)
    return Curves(name, _columns(train), _columns(validation), folder.resolve(), domains, stages, prints)


def _real_tokens(train: list[dict], validation: list[dict]) -> list[dict]:
    """Training records whose `loss` and `accuracy` are of real tokens, as those of the validations are.

    In stages that score the padding, earlier versions of lmplay counted it in both.
    """
    with_pad = [{r.get('stage') for r in kind if 'loss_with_pad' in r} for kind in (validation, train)]
    counted = with_pad[0] - with_pad[1]
    return [
        {k: v for k, v in r.items() if k not in ('loss', 'accuracy')} | {'loss_with_pad': r.get('loss')}
        if r.get('stage') in counted
        else r
        for r in train
    ]


def _columns(records: Sequence[dict]) -> Columns:
    names = {
        k for r in records for k, v in r.items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    return {n: np.array([np.nan if r.get(n) is None else r[n] for r in records], float) for n in names}


def _read_tables(prefix: str, name: str) -> Curves:
    train, validation = (_read_csv(Path(f'{prefix}{table}')) for table in (TRAIN_TABLE, VALIDATION_TABLE))
    return Curves(name, train, validation, Path(prefix).resolve())


def _read_csv(file: Path) -> Columns:
    """A table of the original lmplay: iter, accuracy, loss and, in later versions, tokens."""
    if not file.is_file():
        return {}
    try:
        with open(file, newline='', encoding='utf-8') as lines:
            table = csv.DictReader(lines)
            if 'iter' not in (table.fieldnames or ()):
                raise DataError(
                    f"{file} is not a table of statistics: its first line must name the column 'iter'."
                )
            rows = [row for row in table if None not in row.values()]  # the last line may be torn
        records = [
            {'samples' if k == 'iter' else k: float(v or 'nan') for k, v in row.items() if k} for row in rows
        ]
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f'{file} is not a table of statistics: {error}.') from error
    return {k: np.where(np.isfinite(v), v, np.nan) for k, v in _columns(records).items()}


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` points, fewer at the ends; NaN stays NaN and is ignored in means."""
    if width <= 1 or not len(values):
        return values
    known = ~np.isnan(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(v)]) for v in (np.where(known, values, 0.0), known))
    at = np.arange(len(values))
    low, high = np.maximum(at - (width - 1) // 2, 0), np.minimum(at + width // 2 + 1, len(values))
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(known, (sums[high] - sums[low]) / (counts[high] - counts[low]), np.nan)


def difference(
    curve: tuple[np.ndarray, np.ndarray], base: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(x, curve - base) at every x of either within their common span, interpolated; empty without one."""
    (x1, y1), (x2, y2) = ((x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in (curve, base))
    if not len(x1) or not len(x2):
        return np.empty(0), np.empty(0)
    x = np.union1d(x1, x2)
    x = x[(x >= max(x1[0], x2[0])) & (x <= min(x1[-1], x2[-1]))]
    return x, np.interp(x, x1, y1) - np.interp(x, x2, y2)
