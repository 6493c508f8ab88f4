"""Pictures of what runs recorded: curves of several runs, and their differences against one of them."""

import csv
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError, UserError, unknown
from ..runs.recorder import METRICS, read_metrics

log = logging.getLogger(__name__)

KINDS = ('train', 'validation')
X_LABELS = {'samples': 'samples', 'tokens': 'tokens', 'seconds': 'training time (s)'}
LABELS = {
    'loss': 'loss (nats per token)',
    'accuracy': 'accuracy (fraction of tokens)',
    'perplexity': 'perplexity',
    'bits_per_byte': 'bits per byte',
    'lr': 'learning rate',
    'grad_norm': 'gradient norm',
    'tokens_per_second': 'tokens per second',
    'memory': 'memory (bytes)',
}
# Okabe and Ito's colours, told apart by colour-blind eyes; their yellow is left out, it is too light for lines.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MAX_MARKERS = 40
Columns = dict[str, np.ndarray]  # name -> (points,) float64, NaN where nothing or nothing finite was recorded


@dataclass(eq=False)
class Run:
    """The curves of one run: `train` and `validation`, name -> values; `domains`, name -> the same of validation alone."""

    name: str
    train: Columns
    validation: Columns
    source: Path  # its directory, or what the paths of its two tables begin with
    domains: dict[str, Columns] = field(default_factory=dict)
    stages: list[tuple[str, int]] = field(default_factory=list)  # name, index of its first training point

    def curve(self, kind: str, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Both columns over increasing x; of points at one x the last. Empty where either was not recorded."""
        columns = getattr(self, kind) if kind in KINDS else self.domains[kind]
        if x not in columns or y not in columns or np.isnan(columns[y]).all():
            return np.empty(0), np.empty(0)
        known = ~np.isnan(columns[x])
        xs, ys = columns[x][known][::-1], columns[y][known][::-1]
        xs, first = np.unique(xs, return_index=True)
        return xs, ys[first]

    @property
    def metrics(self) -> set[str]:
        return (set(self.train) | set(self.validation)) - {*X_LABELS, 'step'}

    @property
    def empty(self) -> bool:
        return not self.metrics

    def extent(self, x: str) -> float:
        return max(
            (
                float(np.nanmax(c[x]))
                for c in (self.train, self.validation)
                if len(c.get(x, ())) and not np.isnan(c[x]).all()
            ),
            default=0.0,
        )


def _columns(records: Sequence[dict]) -> Columns:
    names = {
        k for r in records for k, v in r.items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    return {n: np.array([np.nan if r.get(n) is None else r[n] for r in records], float) for n in names}


def _read_csv(file: Path) -> Columns:
    """A table of the original lmplay: iter, accuracy, loss and, in later versions, tokens."""
    if not file.is_file():
        return {}
    try:
        with open(file, newline='', encoding='utf-8') as lines:
            table = csv.DictReader(lines)
            if 'iter' not in (table.fieldnames or ()):
                raise DataError(
                    f"{file} is no table of statistics: its first line must name the column 'iter'."
                )
            rows = [row for row in table if None not in row.values()]  # the last line may be torn
        records = [
            {'samples' if k == 'iter' else k: float(v or 'nan') for k, v in row.items() if k} for row in rows
        ]
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f'{file} is no table of statistics: {error}.') from error
    return {k: np.where(np.isfinite(v), v, np.nan) for k, v in _columns(records).items()}


def _read_run(folder: Path, name: str) -> Run:
    records = read_metrics(folder)
    train, validation = ([r for r in records if r.get('kind') == kind] for kind in KINDS)
    stages = [
        (str(r['stage']), i)
        for i, r in enumerate(train)
        if 'stage' in r and (i == 0 or r['stage'] != train[i - 1].get('stage'))
    ]
    names = dict.fromkeys(d for r in validation for d in r.get('domains') or {})
    where = [{x: r.get(x) for x in X_LABELS} for r in validation]
    domains = {
        d: _columns([(r.get('domains') or {}).get(d, {}) | w for w, r in zip(where, validation, strict=True)])
        for d in names
    }
    return Run(name, _columns(train), _columns(validation), folder.resolve(), domains, stages)


def _csv_run(prefix: str, name: str) -> Run:
    return Run(
        name,
        _read_csv(Path(f'{prefix}train_stats.csv')),
        _read_csv(Path(f'{prefix}validate_stats.csv')),
        Path(prefix).resolve(),
    )


def find_runs(path: str | Path) -> list[Run]:
    """The runs at `path`: a run's directory, one of the original lmplay's tables, or a directory that holds any of these.

    Raises DataError where there is none.
    """
    path = Path(path)
    if path.is_file() and path.name.endswith(('train_stats.csv', 'validate_stats.csv')):
        prefix = str(path).removesuffix('train_stats.csv').removesuffix('validate_stats.csv')
        return [_csv_run(prefix, Path(prefix.rstrip('_')).name)]
    if not path.is_dir():
        raise DataError(
            f"No run at '{path}'. Give a run's directory, a *_train_stats.csv, or a directory that holds some."
        )
    if (path / METRICS).is_file():
        return [_read_run(path, path.resolve().name)]
    runs = [
        _read_run(file.parent, str(file.parent.relative_to(path))) for file in sorted(path.rglob(METRICS))
    ]
    for file in sorted(path.rglob('*train_stats.csv')):
        if not (file.parent / METRICS).is_file():
            prefix = str(file).removesuffix('train_stats.csv')
            runs.append(
                _csv_run(
                    prefix,
                    str(Path(prefix.rstrip('_')).relative_to(path)) if Path(prefix) != path else path.name,
                )
            )
    if not runs:
        raise DataError(f"'{path}' holds no run: neither a {METRICS} nor a *_train_stats.csv, here or below.")
    return runs


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` points, fewer at the ends; NaN stays NaN and counts for nothing."""
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
    """(x, curve - base) at all x of either within the span that both cover, interpolated; empty where they share none."""
    (x1, y1), (x2, y2) = ((x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in (curve, base))
    if not len(x1) or not len(x2):
        return np.empty(0), np.empty(0)
    x = np.union1d(x1, x2)
    x = x[(x >= max(x1[0], x2[0])) & (x <= min(x1[-1], x2[-1]))]
    return x, np.interp(x, x1, y1) - np.interp(x, x2, y2)


def _smoothing(run: Run, asked: int | None) -> int:
    return asked if asked else max(1, len(run.train.get('samples', ())) // 50)


def _draw(axes, x: np.ndarray, y: np.ndarray, kind: str, look: dict, **more):
    """One curve: training solid, validation dashed with markers."""
    few = len(x) <= MAX_MARKERS
    if kind == 'train':
        shape = {'lw': 1.8, 'marker': '.' if np.count_nonzero(~np.isnan(y)) == 1 else None}
    else:
        shape = {'lw': 1.4, 'ls': (0, (4, 2)), 'marker': 'o' if few else None, 'ms': 4, 'mfc': 'white'}
    axes.plot(x, y, **(look | shape | more))


def _finish(axes, x: str, title: str, label: str, pad: float = 6):
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, fontsize=11, loc='left', pad=pad)
    axes.set_xlabel(X_LABELS[x])
    axes.set_ylabel(label)
    axes.grid(True, color='#dddddd', lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    if x != 'seconds':
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.margins(x=0.02)


def _figure(rows: int, columns: int):
    from matplotlib.figure import Figure  # not pyplot: needs no display, and shares no state with a caller's

    figure = Figure(figsize=(6.4 * columns, 4.2 * rows + 0.5), layout='constrained', dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend(figure, entries: Iterable[tuple[str, dict]], kinds: Sequence[str]):
    from matplotlib.lines import Line2D

    entries = list(entries)
    handles = (
        [Line2D([], [], lw=2.5, label=label, **look) for label, look in entries] if len(entries) > 1 else []
    )
    styles = {
        'train': ('training', {'lw': 1.8}),
        'validation': ('validation', {'lw': 1.4, 'ls': (0, (4, 2)), 'marker': 'o', 'ms': 4, 'mfc': 'white'}),
    }
    colour = '#666666' if handles else entries[0][1]['color']
    handles += [Line2D([], [], color=colour, label=styles[k][0], **styles[k][1]) for k in KINDS if k in kinds]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 5), frameon=False)


def _looks(number: int) -> list[dict]:
    styles = ('-', ':', '-.')
    return [
        {'color': COLOURS[i % len(COLOURS)], 'ls': styles[i // len(COLOURS) % len(styles)]}
        for i in range(number)
    ]


def plot(
    runs: Sequence[Run],
    out: Path,
    *,
    x: str = 'samples',
    metrics: Sequence[str] = (),
    smoothing: int | None = None,
    baseline: Run | None = None,
) -> Path:
    """Draws each of `metrics` (loss and accuracy unless given) of `runs` over `x`, and with several runs their differences
    against `baseline`, one of them (the longest unless given). Returns `out`.

    smoothing   training points that a smoothed one is the mean of; a fiftieth of them unless given

    Raises UserError for a metric or axis that no run has, and where no run holds a point.
    """
    if baseline is not None and baseline.empty:
        raise DataError(f'The baseline {baseline.name} has recorded no points yet.')
    runs = [run for run in runs if not run.empty]
    if not runs:
        raise DataError('Nothing to plot: no run has recorded a point yet.')
    known = {m for run in runs for m in run.metrics}
    for metric in metrics:
        if metric not in known:
            raise UserError(unknown('metric', metric, known))
    if without := [run.name for run in runs if not run.extent(x)]:
        raise UserError(f'{", ".join(without)} recorded no {x}; choose another --x: {", ".join(X_LABELS)}.')
    base = baseline or max(runs, key=lambda run: run.extent(x))
    metrics = (
        list(dict.fromkeys(metrics)) or [m for m in ('loss', 'accuracy') if m in known] or sorted(known)[:1]
    )
    one = runs[0] if len(runs) == 1 else None
    by_domain = one is not None and len(one.domains) > 1 and 'loss' in metrics
    figure, panels = _figure(1, len(metrics) + by_domain) if one else _figure(len(metrics), 2)
    looks, drawn = _looks(len(runs)), set()
    for i, metric in enumerate(metrics):
        axes = panels[0, i] if one else panels[i, 0]
        curves = {}
        for run, look in zip(runs, looks, strict=True):
            for kind in KINDS:
                xs, ys = run.curve(kind, x, metric)
                if not len(xs):
                    continue
                drawn.add(kind)
                width = _smoothing(run, smoothing)
                if kind == 'train' and width > 1:
                    axes.plot(xs, ys, color=look['color'], lw=0.6, alpha=0.25)
                    ys = smooth(ys, width)
                curves[run.name, kind] = xs, ys
                starts = (
                    [run.train[x][i] for _, i in run.stages[1:]]
                    if one and kind == 'validation' and x in run.train
                    else []
                )
                for part in np.split(
                    np.arange(len(xs)), np.searchsorted(xs, starts)
                ):  # another stage may be evaluated on other text
                    _draw(axes, xs[part], ys[part], kind, look)
        if metric == 'perplexity':
            axes.set_yscale('log')
        label = LABELS.get(metric, metric.replace('_', ' '))
        _finish(axes, x, metric.replace('_', ' '), label, pad=18 if one and len(one.stages) > 1 else 6)
        if one:
            _mark_stages(axes, one, x)
        else:
            _draw_differences(panels[i, 1], runs, looks, base, curves)
            _finish(
                panels[i, 1],
                x,
                f'{metric.replace("_", " ")}: difference to {base.name}',
                f'difference of {label}',
            )
    if by_domain:
        _draw_domains(panels[0, -1], one, x)
    _legend(figure, ((run.name, look) for run, look in zip(runs, looks, strict=True)), sorted(drawn))
    if one:
        figure.suptitle(one.name, fontsize=12)
    return _save(figure, out)


def _draw_differences(axes, runs: Sequence[Run], looks: Sequence[dict], base: Run, curves: dict):
    axes.axhline(0, color=looks[runs.index(base)]['color'], lw=1)
    for run, look in zip(runs, looks, strict=True):
        for kind in KINDS:
            if run is not base and (run.name, kind) in curves and (base.name, kind) in curves:
                xs, ys = difference(curves[run.name, kind], curves[base.name, kind])
                _draw(axes, xs, ys, kind, look)


def _draw_domains(axes, run: Run, x: str):
    for (name, _), look in zip(run.domains.items(), _looks(len(run.domains)), strict=True):
        xs, ys = run.curve(name, x, 'loss')
        _draw(axes, xs, ys, 'validation', look, label=name)
    _finish(axes, x, 'validation loss by domain', LABELS['loss'])
    axes.legend(frameon=False)


def _mark_stages(axes, run: Run, x: str):
    if len(run.stages) > 1 and x in run.train:
        for name, index in run.stages:
            at = run.train[x][index]
            if index:
                axes.axvline(at, color='#888888', lw=0.9, ls=':')
            axes.annotate(
                name,
                (at, 1),
                xycoords=('data', 'axes fraction'),
                xytext=(0, 2),
                textcoords='offset points',
                fontsize=8,
                color='#555555',
            )


def _save(figure, out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib has no writer for
        raise UserError(f"Can't write the picture '{out}': {error}.") from error
    return out


def plot_run(run_dir: str | Path) -> Path:
    """Writes `curves.png` into a run's directory and returns its path; a run without points becomes a sentence."""
    out = Path(run_dir) / 'curves.png'
    run = _read_run(Path(run_dir), Path(run_dir).resolve().name)
    if not run.empty:
        return plot([run], out, x='samples' if run.extent('samples') else 'tokens')
    figure, panels = _figure(1, 1)
    panels[0, 0].set_axis_off()
    panels[0, 0].text(0.5, 0.5, f'{run.name} has recorded no points yet.', ha='center', va='center')
    return _save(figure, out)
