"""Pictures of what runs recorded: curves of one run or several, and differences from one of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, UserError, unknown
from ..runs.finished import MODEL_METRIC, metric_key
from .curves import KINDS, Curves, difference, read_curves, smooth
from .decoration import label

X_LABELS = {'samples': 'samples', 'tokens': 'tokens', 'seconds': 'training time (s)'}
LABELS = {
    'loss': 'loss (nats per token)',
    'loss_with_pad': 'loss with padding (nats per target)',
    'accuracy': 'accuracy (fraction of tokens)',
    'perplexity': 'perplexity',
    'bits_per_byte': 'bits per byte',
    'lr': 'learning rate',
    'grad_norm': 'gradient norm',
    'tokens_per_second': 'tokens per second',
    'memory': 'memory (bytes)',
}
# Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is too light for lines.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
# How evenly a routed model uses its experts; by convention scalars it reports begin with these words.
BESIDE_THE_LOSS = (f'{MODEL_METRIC}gini', f'{MODEL_METRIC}entropy')
STYLES = {
    'train': {'lw': 1.8},
    'validation': {'lw': 1.4, 'ls': (0, (4, 2)), 'marker': 'o', 'ms': 4, 'mfc': 'white'},
}
MAX_MARKERS = 40
SMOOTHED = 50  # points of a smoothed training curve, roughly


def plot_run(run_dir: str | Path) -> Path:
    """Writes `curves.png` into a run's directory and returns its path; of a run without points it says so."""
    out = Path(run_dir) / 'curves.png'
    run = read_curves(run_dir)
    if not run.empty:
        return plot([run], out, x='samples' if run.extent('samples') else 'tokens')
    figure, panels = _figure(1, 1)
    panels[0, 0].set_axis_off()
    panels[0, 0].text(0.5, 0.5, f'{label(run.name)} has recorded no points yet.', ha='center', va='center')
    return _save(figure, out)


def plot(runs: Sequence[Curves], out: Path, **options) -> Path:
    """Writes the picture that `draw` makes of these runs with these options to `out`, and returns that.

    Raises UserError where it cannot be drawn or written.
    """
    return _save(draw(runs, **options), out)


def _save(figure, out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except (
        Exception
    ) as error:  # matplotlib raises many kinds, for a suffix without a writer as for a missing font
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f"Can't write the picture '{out}': {reason.rstrip('.')}.") from error
    return out


def draw(
    runs: Sequence[Curves],
    *,
    x: str = 'samples',
    metrics: Sequence[str] = (),
    smoothing: int | None = None,
    baseline: Curves | None = None,
):
    """A matplotlib figure with each of `metrics` over `x`; unless given loss, accuracy, Gini and entropy.

    One run is shown with its stages and, for the loss, its domains; several with their differences from
    `baseline`, one of them (the longest unless given). Runs evaluated on other held-out text have panels, and
    a baseline, of their own. smoothing: training points that a smoothed one averages; by default a fiftieth
    of them.

    Raises UserError for a metric or axis that was not recorded, and where no run holds a point.
    """
    if baseline is not None and baseline.empty:
        raise DataError(f'The baseline {baseline.name} has recorded no points yet.')
    runs = [run for run in runs if not run.empty]
    if not runs:
        raise DataError('Nothing to plot: no run has recorded a point yet.')
    if without := [run.name for run in runs if not run.extent(x)]:
        raise UserError(f'{", ".join(without)} recorded no {x}; choose another --x: {", ".join(X_LABELS)}.')
    metrics = _chosen(metrics, {m for run in runs for m in run.metrics})
    if len(runs) == 1:
        return _draw_one(runs[0], x, metrics, smoothing)
    base = baseline or max(runs, key=lambda run: run.extent(x))
    return _draw_several(runs, base, x, metrics, smoothing)


def _chosen(metrics: Sequence[str], known: set[str]) -> list[str]:
    for metric in metrics:
        if metric_key(known, metric) not in known:
            raise UserError(unknown('metric', metric, known))
    usual = [m for m in ('loss', 'accuracy') if m in known]
    usual += sorted(m for m in known if m.startswith(BESIDE_THE_LOSS))
    return list(dict.fromkeys(metrics)) or usual or sorted(known)[:1]


def _draw_one(run: Curves, x: str, metrics: list[str], smoothing: int | None):
    by_domain = len(run.domains) > 1 and 'loss' in metrics
    figure, panels = _figure(1, len(metrics) + by_domain)
    (look,), kinds = _looks(1), set()
    for axes, metric in zip(panels[0], metrics):
        kinds |= _draw_curves(axes, run, look, x, metric, smoothing, break_at_stages=True).keys()
        _finish(axes, x, _title(metric), _label(metric), pad=18 if len(run.stages) > 1 else 6)
        _mark_stages(axes, run, x)
    if by_domain:
        _draw_domains(panels[0, -1], run, x)
    _legend(figure, [(run.name, look)], kinds)
    figure.suptitle(label(run.name), fontsize=12)
    return figure


def _draw_several(runs: list[Curves], base: Curves, x: str, metrics: list[str], smoothing: int | None):
    rows = [(metric, group) for metric in metrics for group in _on_one_text(runs, metric)]
    figure, panels = _figure(len(rows), 2)
    looks, kinds = dict(zip(map(id, runs), _looks(len(runs)), strict=True)), set()
    for (left, right), (metric, group) in zip(panels, rows):
        own = [looks[id(run)] for run in group]
        drawn = [_draw_curves(left, run, look, x, metric, smoothing) for run, look in zip(group, own)]
        text = f', held-out text of {group[0].name}' if len(group) < len(runs) else ''
        _finish(left, x, _title(metric) + text, _label(metric))
        kinds |= {kind for curves in drawn for kind in curves}
        first = base if base in group else max(group, key=lambda run: run.extent(x))
        _draw_differences(right, drawn, own, group.index(first))
        title = f'{_title(metric)}: difference from {label(first.name)}'
        _finish(right, x, title, f'difference in {_label(metric)}')
    _legend(figure, [(run.name, looks[id(run)]) for run in runs], kinds)
    return figure


def _on_one_text(runs: Sequence[Curves], metric: str) -> list[list[Curves]]:
    """The runs in groups that were evaluated on the same held-out tokens, or text for bits per byte; all in
    one for a metric that no run evaluates."""
    if not any(metric_key(run.validation, metric) in run.validation for run in runs):
        return [list(runs)]
    groups: dict[str, list[Curves]] = {}
    for run in runs:
        text = run.fingerprints.get('text' if metric == 'bits_per_byte' else 'evaluation', '')
        groups.setdefault(text, []).append(run)
    return list(groups.values())


def _draw_curves(
    axes,
    run: Curves,
    look: dict,
    x: str,
    metric: str,
    smoothing: int | None,
    *,
    break_at_stages: bool = False,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A run's training curve, smoothed, and its validation curve, as returned by kind.

    break_at_stages: ends the validation line with each stage, as another may be evaluated on other text.
    """
    found = {}
    width = smoothing or max(1, len(run.train.get('samples', ())) // SMOOTHED)
    for kind in KINDS:
        xs, ys = run.curve(kind, x, metric)
        if not len(xs):
            continue
        if kind == 'train' and width > 1:
            axes.plot(xs, ys, color=look['color'], lw=0.6, alpha=0.25)
            ys = smooth(ys, width)
        found[kind] = xs, ys
        breaks = [at for _, at in run.stage_starts(x)[1:]] if break_at_stages and kind == 'validation' else []
        for part in np.split(np.arange(len(xs)), np.searchsorted(xs, breaks)):
            _draw_line(axes, xs[part], ys[part], kind, look)
    if metric == 'perplexity':
        axes.set_yscale('log')
    return found


def _draw_line(axes, x: np.ndarray, y: np.ndarray, kind: str, look: dict, **more):
    """One curve: training solid, validation dashed with markers unless they are many."""
    style = dict(STYLES[kind])
    if kind == 'train':
        style['marker'] = '.' if np.count_nonzero(~np.isnan(y)) == 1 else None
    elif len(x) > MAX_MARKERS:
        style['marker'] = None
    axes.plot(x, y, **(look | style | more))


def _draw_differences(axes, drawn: list[dict], looks: Sequence[dict], base: int):
    axes.axhline(0, color=looks[base]['color'], lw=1)
    for i, (curves, look) in enumerate(zip(drawn, looks, strict=True)):
        for kind in KINDS:
            if i != base and kind in curves and kind in drawn[base]:
                xs, ys = difference(curves[kind], drawn[base][kind])
                _draw_line(axes, xs, ys, kind, look)


def _draw_domains(axes, run: Curves, x: str):
    for name, look in zip(run.domains, _looks(len(run.domains)), strict=True):
        xs, ys = run.curve(name, x, 'loss')
        _draw_line(axes, xs, ys, 'validation', look, label=label(name))
    _finish(axes, x, 'validation loss by domain', LABELS['loss'])
    axes.legend(frameon=False)


def _mark_stages(axes, run: Curves, x: str):
    starts = run.stage_starts(x)
    for i, (name, at) in enumerate(starts if len(starts) > 1 else ()):
        if i:
            axes.axvline(at, color='#888888', lw=0.9, ls=':')
        axes.annotate(
            label(name),
            (at, 1),
            xycoords=('data', 'axes fraction'),
            xytext=(0, 2),
            textcoords='offset points',
            fontsize=8,
            color='#555555',
        )


def _title(metric: str) -> str:
    return label(metric.removeprefix(MODEL_METRIC).replace('_', ' '))


def _label(metric: str) -> str:
    return LABELS.get(metric, _title(metric))


def _finish(axes, x: str, title: str, unit: str, pad: float = 6):
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, fontsize=11, loc='left', pad=pad)
    axes.set_xlabel(X_LABELS[x])
    axes.set_ylabel(unit)
    axes.grid(True, color='#dddddd', lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    if x != 'seconds':
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.margins(x=0.02)


def _figure(rows: int, columns: int):
    # unlike pyplot, it needs no display and shares no state with a caller's figures
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 4.2 * rows + 0.5), layout='constrained', dpi=120)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend(figure, entries: list[tuple[str, dict]], kinds: set[str]):
    from matplotlib.lines import Line2D

    handles = []
    if len(entries) > 1:
        handles = [Line2D([], [], lw=2.5, label=label(name), **look) for name, look in entries]
    colour = '#666666' if handles else entries[0][1]['color']
    for kind, name in zip(KINDS, ('training', 'validation')):
        if kind in kinds:
            handles.append(Line2D([], [], color=colour, label=name, **STYLES[kind]))
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 5), frameon=False)


def _looks(number: int) -> list[dict]:
    styles = ('-', ':', '-.')
    return [
        {'color': COLOURS[i % len(COLOURS)], 'ls': styles[i // len(COLOURS) % len(styles)]}
        for i in range(number)
    ]
