"""The sections of an X-ray's page: pictures, and what to see in them."""

import base64
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..plots.decoration import decoration
from . import heatmaps, pictures
from .findings import Findings
from .history import History
from .svg import FEW, themed

TITLES = {'domain': 'Routing by domain', 'type': 'Routing by kind of token'}
TEXTS = {
    'domain': "The share of each domain's assignments that goes to each expert. Rows that look alike are "
    'routed alike.',
    'type': 'The same by kind of token; a part of a word or number counts as that word or number. Keywords, '
    'identifiers, strings and comments are those of source code; words are those of prose.',
    'training': 'What the run recorded as it trained. The shares of a few experts are smoothed.',
    'alarms': ' Vertical lines are collapse alarms: one expert took too much of a layer at an evaluation.',
    'drift': "How far each expert's weights have moved: the norm of their change relative to that of their "
    'start, and the cosines between the changes of different experts (1: they learned the same; 0: '
    "unrelated). Changes are measured from {}. No expert's cosine with that is below {:.4f}.",
    'keys': 'Where the experts sit: their keys along the two directions in which they differ most. The size '
    "of a dot is the expert's running usage; its colour is the domain that the expert serves most beyond its "
    'share.',
    'side': 'Layer by layer, {} and {}, on the same text.',
    'snapshots': 'The load of the experts in the checkpoints that the run keeps, measured on the same text.',
    'coactivation': 'The share of tokens that both experts serve.',
}


@dataclass
class Picture:
    file: str
    svg: str
    alt: str
    wide: bool = False

    @property
    def source(self) -> str:
        """The picture as a URL that holds it."""
        return 'data:image/svg+xml;base64,' + base64.b64encode(themed(self.svg).encode()).decode()


@dataclass
class Section:
    title: str
    text: str
    pictures: list[Picture]


class Album:
    """Draws pictures into a folder. One that fails is left out with a warning."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pictures: list[Picture] = []

    def add(self, name: str, alt: str, draw: Callable[..., str], *arguments, wide: bool = False) -> None:
        """Draws `draw(*arguments)` as the next picture of the section."""
        file = re.sub(r'[^\w-]+', '-', name) + '.svg'
        with decoration(f"The picture '{file}'"):
            svg = draw(*arguments)
            (self.folder / file).write_text(svg, encoding='utf-8')
            self.pictures.append(Picture(file, svg, alt, wide))

    def section(self, title: str, text: str) -> Section:
        """The pictures since the last section, as one."""
        drawn, self.pictures = self.pictures, []
        return Section(title, text, drawn)


def draw_sections(findings: Findings, folder: Path) -> list[Section]:
    """Every section that has something to show, its pictures written into the folder."""
    album = Album(folder)
    makers = (
        side_by_side,
        by_domain,
        by_type,
        over_training,
        at_snapshots,
        of_drift,
        of_keys,
        of_coactivation,
    )
    return [section for make in makers if (section := make(findings, album)) is not None]


def side_by_side(findings: Findings, album: Album) -> Section | None:
    other = findings.other
    if other is None:
        return None
    both = (findings, other)
    for pair in itertools.zip_longest(*(range(len(each.layers)) for each in both)):
        for run, (each, i) in enumerate(zip(both, pair)):
            if i is not None:
                name = f'{each.names[i]} of {each.report.checkpoint}'
                _group_picture(each, album, 'domain', i, file=f'run-{run + 1}-{each.names[i]}', title=name)
        for run, (each, i) in enumerate(zip(both, pair)):
            if i is not None and each.report.history is not None:
                name = f'{each.names[i]} of {each.report.checkpoint}'
                _load_picture(each, album, i, file=f'run-{run + 1}-load-{each.names[i]}', title=name)
    return album.section('Side by side', TEXTS['side'].format(*(each.report.checkpoint for each in both)))


def at_snapshots(findings: Findings, album: Album) -> Section | None:
    snapshots = findings.report.snapshots
    if snapshots is None:
        return None
    for i, name in enumerate(findings.names):
        shares = ', '.join(
            f'{load.max():.0%} at {step}' for step, load in zip(snapshots.step, snapshots.load[:, i])
        )
        alt = f'Expert load of {name} at saved snapshots: the busiest expert had {shares}.'
        wide = snapshots.load.shape[2] > FEW
        album.add(f'snapshots-{name}', alt, pictures.load_curves, snapshots, i, name, wide=wide)
    return album.section('At saved snapshots', TEXTS['snapshots'])


def by_domain(findings: Findings, album: Album) -> Section:
    return _by_group(findings, album, 'domain')


def by_type(findings: Findings, album: Album) -> Section:
    return _by_group(findings, album, 'type')


def _by_group(findings: Findings, album: Album, kind: str) -> Section:
    for i, name in enumerate(findings.names):
        _group_picture(findings, album, kind, i, file=f'{kind}s-{name}', title=name)
    return album.section(TITLES[kind], TEXTS[kind])


def _group_picture(findings: Findings, album: Album, kind: str, i: int, *, file: str, title: str) -> None:
    tokens, layer = findings.tokens[kind], findings.layers[i]
    names = [name for name, n in zip(findings.groups[kind], tokens) if n]
    rows = [f'{name} ({count(n)})' for name, n in zip(names, tokens[tokens > 0])]
    fractions = findings.fractions[kind][i][tokens > 0]
    most = '; '.join(
        f'{name} mostly expert {f.argmax()} ({f.max():.0%})' for name, f in zip(names, fractions)
    )
    alt = f'Heat map of {title}, {kind} by expert: {most}.'
    wide = layer.num_experts > FEW
    album.add(file, alt, heatmaps.group_heat, fractions, findings.loads[i], rows, title, wide=wide)


def over_training(findings: Findings, album: Album) -> Section | None:
    history, names = findings.report.history, findings.names
    if history is None:
        return None
    alarms, marked = len(history.alarms), _marked(history)
    for i, name in enumerate(names):
        _load_picture(findings, album, i, file=f'load-{name}', title=name)
    for metric, values in history.curves.items():
        ends = ', '.join(f'{name} {a:.3g} to {b:.3g}' for name, a, b in zip(names, values[0], values[-1]))
        alt = f'{metric} over training: {ends}. {marked}'
        album.add(f'training-{metric}', alt, pictures.layer_curves, history, metric, names)
    return album.section('Over training', TEXTS['training'] + (TEXTS['alarms'] if alarms else f' {marked}'))


def _load_picture(findings: Findings, album: Album, i: int, *, file: str, title: str) -> None:
    history = findings.report.history
    assert history is not None
    first, last = history.load[0, i], history.load[-1, i]
    alt = (
        f'Expert load of {title} from step {history.step[0]} to {history.step[-1]}: the busiest had '
        f'{first.max():.0%} at first and expert {last.argmax()} has {last.max():.0%} at the end. '
        f'{_marked(history)}'
    )
    album.add(file, alt, pictures.load_curves, history, i, title, wide=last.size > FEW)


def _marked(history: History) -> str:
    alarms = len(history.alarms)
    return f'{alarms} alarms are marked.' if alarms else 'No alarm was raised.'


def of_drift(findings: Findings, album: Album) -> Section | None:
    if not findings.drifts:
        return None
    names, norms = [layer.name for layer, _ in findings.drifts], [d.norm for _, d in findings.drifts]
    farthest = '; '.join(
        f'{name} farthest expert {norm.argmax()} ({norm.max():.2g}), nearest {norm.argmin()} '
        f'({norm.min():.2g})'
        for name, norm in zip(names, norms)
    )
    album.add(
        'drift',
        f'Relative drift: {farthest}.',
        heatmaps.norm_heat,
        norms,
        names,
        'relative drift',
        wide=len(norms[0]) > FEW,
    )
    for layer, d in findings.drifts:
        alt = f'Cosines between the drifts of the experts of {layer.name}, {_span(d.between)}.'
        title = f'{layer.name}: cosine between drifts'
        album.add(f'drift-{layer.name}', alt, heatmaps.cosine_heat, d.between, title)
    low = min(float(d.cosine.min()) for _, d in findings.drifts)
    return album.section('Drift of the experts', TEXTS['drift'].format(findings.report.reference, low))


def of_keys(findings: Findings, album: Album) -> Section | None:
    if not findings.keys:
        return None
    for key in findings.keys:
        album.add(
            f'keys-{key.layer.name}',
            f'Keys of {key.layer.name} in two dimensions, which hold {key.explained.sum():.0%} of their '
            f'variance; the most used expert is {key.usage.argmax()}.',
            pictures.key_map,
            key.points,
            key.explained,
            key.usage,
            key.favours,
            findings.groups['domain'],
            key.layer.name,
        )
    return album.section('Keys', TEXTS['keys'])


def of_coactivation(findings: Findings, album: Album) -> Section | None:
    if not findings.coactivation:
        return None
    for layer, together in findings.coactivation:
        a, b = np.unravel_index(np.argmax(np.tril(together, -1)), together.shape)
        alt = (
            f'Co-activation in {layer.name}: experts {b} and {a} serve {together[a, b]:.1%} of the tokens '
            'together, more than any other pair.'
        )
        title = f'{layer.name}: % of tokens served by both'
        album.add(f'coactivation-{layer.name}', alt, heatmaps.share_heat, together, title)
    return album.section('Co-activation', TEXTS['coactivation'])


def count(n: int) -> str:
    """12345 -> '12 k'."""
    if n >= 1e6:
        return f'{n / 1e6:.1f} M'
    if n >= 1e4:
        return f'{n / 1e3:.0f} k'
    return f'{n / 1e3:.1f} k' if n >= 1e3 else str(n)


def _span(values: np.ndarray) -> str:
    known = values[np.tril_indices(len(values), -1)]
    known = known[~np.isnan(known)]
    return f'from {known.min():.2f} to {known.max():.2f}' if len(known) else 'none known: no expert has moved'
