"""Writes an X-ray: its tables as CSV, its pictures as SVG, and one page that holds all of it."""

import base64
import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.base_model import Experts
from ..errors import UserError
from . import pictures
from .collect import Favourite, Observed, RoutedTokens, entropy_bits, gini, information
from .drift import Drift
from .history import History
from .token_types import TYPES

FAVOURITES = 8
IN_CONTEXT = 3  # of a few experts' favourites; 1 of many's
PAGE = 'index.html'
TITLES = {'domain': 'Which domain goes where', 'type': 'Which kind of token goes where'}
TEXTS = {
    'domain': "Of the assignments that each domain's tokens make, the share that goes to each expert. Rows that look alike are "
    'routed alike.',
    'type': 'The same by what a token is (a part of). Keywords and identifiers are those of source code; its comments and '
    'strings are read as prose.',
    'training': 'What the run recorded at its steps, over their batches; the shares of a few experts are smoothed.',
    'alarms': ' Vertical lines are collapse alarms: one expert took too much of a layer at an evaluation.',
    'drift': "How far each expert's weights have come: the length of what was added, relative to where it began, and the cosines "
    'between what was added to different experts (1: they learned the same; 0: things that have nothing to do with each '
    "other). It is measured from {}. No expert's cosine with where it began is below {:.4f}.",
    'keys': 'Where the experts sit: their keys on the two directions in which they differ most. A spot is as large as the '
    "expert's running usage; its colour is the domain that the expert serves most beyond its share.",
    'coactivation': 'The share of tokens that both experts serve.',
}


@dataclass
class Report:
    """What an X-ray found. drifts: one per layer, None where its experts are frozen; empty where all are."""

    model: str
    checkpoint: str
    step: int
    text: str
    observed: Observed
    history: History | None
    experts: list[Experts]
    drifts: list[Drift | None]
    reference: str


@dataclass
class Picture:
    file: str
    svg: str
    alt: str
    wide: bool = False

    @property
    def source(self) -> str:
        return 'data:image/svg+xml;base64,' + base64.b64encode(pictures.themed(self.svg).encode()).decode()


@dataclass
class Section:
    title: str
    text: str
    pictures: list[Picture]


@dataclass
class XRay:
    """An X-ray that was written: its page, what the page shows in pictures, and what it calls the layers."""

    page: Path
    sections: list[Section]
    layers: list[str]


class Writer:
    """Puts an X-ray's files into a folder."""

    def __init__(self, report: Report, folder: Path):
        self.report, self.folder, self.observed = report, folder, report.observed
        self.tables: list[str] = []
        o = self.observed
        self.layers, self.groups = o.layers, {'domain': o.domains, 'type': list(TYPES)}
        self.members = {'domain': o.domain, 'type': o.type.astype(np.int64)}
        self.tokens = {k: np.bincount(self.members[k], minlength=len(g)) for k, g in self.groups.items()}
        self.fractions = {
            k: [layer.fractions(self.members[k], len(g)) for layer in self.layers]
            for k, g in self.groups.items()
        }
        self.loads = [layer.load for layer in self.layers]

    def table(self, name: str, header: list[str], rows: Iterable[Iterable]) -> None:
        self.tables.append(f'{name}.csv')
        with open(self.folder / self.tables[-1], 'w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(
                [f'{v:.6g}' if isinstance(v, (float, np.floating)) else v for v in row] for row in rows
            )

    def picture(self, name: str, svg: str, alt: str, *, wide: bool = False) -> Picture:
        file = re.sub(r'[^\w-]+', '-', name) + '.svg'
        (self.folder / file).write_text(svg, encoding='utf-8')
        return Picture(file, svg, alt, wide)

    def summary(self) -> list[dict]:
        rows = []
        for i, (layer, load) in enumerate(zip(self.layers, self.loads)):
            E = layer.num_experts
            rows.append(
                {
                    'layer': layer.name,
                    'experts': E,
                    'top_k': layer.expert_ids.shape[1],
                    'busiest': int(load.argmax()),
                    'busiest_share': float(load.max()),
                    'unused': int((load == 0).sum()),
                    'gini': gini(load),
                    'load_entropy_bits': entropy_bits(load),
                    'router_entropy_nats': float(layer.entropy.mean()),
                    **{
                        f'{kind}_bits': information(self.fractions[kind][i], self.tokens[kind])
                        for kind in self.groups
                    },
                }
            )
        self.table('summary', list(rows[0]), (r.values() for r in rows))
        return rows

    def group_section(self, kind: str) -> Section:
        names, shown = self.groups[kind], self.tokens[kind] > 0
        self.table(
            f'{kind}s',
            ['layer', 'expert', kind, 'fraction', 'tokens'],
            (
                (layer.name, e, name, f[g, e], self.tokens[kind][g])
                for layer, f in zip(self.layers, self.fractions[kind])
                for g, name in enumerate(names)
                if shown[g]
                for e in range(layer.num_experts)
            ),
        )
        rows = [f'{name} ({_count(n)})' for name, n in zip(names, self.tokens[kind]) if n]
        found = []
        for layer, fractions, load in zip(self.layers, self.fractions[kind], self.loads):
            fractions = fractions[shown]
            most = '; '.join(
                f'{name} mostly expert {f.argmax()} ({f.max():.0%})'
                for name, f in zip((n for n, s in zip(names, shown) if s), fractions)
            )
            found.append(
                self.picture(
                    f'{kind}s-{layer.name}',
                    pictures.group_heat(fractions, load, rows, layer.name),
                    f'Heat map of {layer.name}, {kind} by expert: {most}.',
                    wide=layer.num_experts > pictures.FEW,
                )
            )
        return Section(TITLES[kind], TEXTS[kind], found)

    def training_section(self) -> Section | None:
        h = self.report.history
        if h is None:
            return None
        names = [layer.name for layer in self.layers]
        self.table(
            'training',
            ['step', 'metric', 'layer', 'expert', 'value'],
            (
                *(
                    (s, 'expert_load', names[i], e, h.load[p, i, e])
                    for p, s in enumerate(h.step)
                    for i in range(len(names))
                    for e in range(h.load.shape[2])
                ),
                *(
                    (s, metric, names[i], '', values[p, i])
                    for metric, values in h.curves.items()
                    for p, s in enumerate(h.step)
                    for i in range(len(names))
                ),
            ),
        )
        self.table('alarms', ['step', 'alarm', 'message'], h.alarms)
        marked = f'{len(h.alarms)} alarms are marked.' if h.alarms else 'No alarm was raised.'
        found = []
        for i, name in enumerate(names):
            first, last = h.load[0, i], h.load[-1, i]
            found.append(
                self.picture(
                    f'load-{name}',
                    pictures.load_curves(h, i, name),
                    f'Expert load of {name} from step {h.step[0]} to {h.step[-1]}: the busiest had '
                    f'{first.max():.0%} at first and expert {last.argmax()} has {last.max():.0%} at the end. '
                    f'{marked}',
                    wide=last.size > pictures.FEW,
                )
            )
        for metric, values in h.curves.items():
            ends = ', '.join(f'{name} {a:.3g} to {b:.3g}' for name, a, b in zip(names, values[0], values[-1]))
            found.append(
                self.picture(
                    f'training-{metric}',
                    pictures.layer_curves(h, metric, names),
                    f'{metric} over training: {ends}. {marked}',
                )
            )
        return Section(
            'Over training', TEXTS['training'] + (TEXTS['alarms'] if h.alarms else f' {marked}'), found
        )

    def drift_section(self) -> Section | None:
        drifts = [(layer, d) for layer, d in zip(self.layers, self.report.drifts) if d is not None]
        if not drifts:
            return None
        self.table(
            'drift',
            ['layer', 'expert', 'relative_norm', 'cosine'],
            ((layer.name, e, d.norm[e], d.cosine[e]) for layer, d in drifts for e in range(len(d.norm))),
        )
        self.table(
            'drift_pairs',
            ['layer', 'expert', 'other', 'cosine'],
            (
                (layer.name, a, b, d.between[a, b])
                for layer, d in drifts
                for a in range(len(d.norm))
                for b in range(a)
            ),
        )
        names = [layer.name for layer, _ in drifts]
        farthest = '; '.join(
            f'{layer.name} farthest expert {d.norm.argmax()} ({d.norm.max():.2g}), nearest {d.norm.argmin()} '
            f'({d.norm.min():.2g})'
            for layer, d in drifts
        )
        found = [
            self.picture(
                'drift',
                pictures.norm_heat([d.norm for _, d in drifts], names, 'length of the drift, relative'),
                f'Relative length of the drift: {farthest}.',
                wide=len(drifts[0][1].norm) > pictures.FEW,
            )
        ]
        for layer, d in drifts:
            svg = pictures.square_heat(d.between, f'{layer.name}: cosine between drifts', signed=True)
            found.append(
                self.picture(
                    f'drift-{layer.name}',
                    svg,
                    f'Cosines between the drifts of the experts of {layer.name}, {_span(d.between)}.',
                )
            )
        low = min(float(d.cosine.min()) for _, d in drifts)
        return Section('Drift of the experts', TEXTS['drift'].format(self.report.reference, low), found)

    def key_section(self) -> Section | None:
        placed = [(i, x) for i, x in enumerate(self.report.experts) if x.keys is not None]
        if not placed:
            return None
        rows, found = [], []
        for i, x in placed:
            layer, load, fractions = self.layers[i], self.loads[i], self.fractions['domain'][i]
            points, explained = principal(x.keys.detach().float().cpu().numpy())
            usage = load if x.usage is None else x.usage.detach().float().cpu().numpy()
            with np.errstate(invalid='ignore', divide='ignore'):
                favours = np.where(load > 0, np.nan_to_num(fractions / load).argmax(0), -1)
            domains = self.observed.domains
            rows += [
                (layer.name, e, *point, u, domains[g] if g >= 0 else '')
                for e, (point, u, g) in enumerate(zip(points, usage, favours))
            ]
            found.append(
                self.picture(
                    f'keys-{layer.name}',
                    pictures.key_map(points, explained, usage, favours, domains, layer.name),
                    f'Keys of {layer.name} in two dimensions, which hold {explained.sum():.0%} of their '
                    f'variance; the most used expert is {usage.argmax()}.',
                )
            )
        self.table('keys', ['layer', 'expert', 'x', 'y', 'usage', 'favours'], rows)
        return Section('Keys', TEXTS['keys'], found)

    def coactivation_section(self) -> Section | None:
        several = [layer for layer in self.layers if layer.expert_ids.shape[1] > 1]
        if not several:
            return None
        rows, found = [], []
        for layer in several:
            together = layer.coactivation()
            rows += [
                (layer.name, a, b, together[a, b])
                for a in range(layer.num_experts)
                for b in range(a)
                if together[a, b]
            ]
            pair = np.unravel_index(np.argmax(np.tril(together, -1)), together.shape)
            found.append(
                self.picture(
                    f'coactivation-{layer.name}',
                    pictures.square_heat(together, f'{layer.name}: % of tokens served by both', signed=False),
                    f'Co-activation in {layer.name}: experts {pair[1]} and {pair[0]} serve '
                    f'{together[pair]:.1%} of the tokens together, more than any other pair.',
                )
            )
        self.table('coactivation', ['layer', 'expert', 'other', 'fraction'], rows)
        return Section('Chosen together', TEXTS['coactivation'], found)

    def favourites(self) -> list[tuple[RoutedTokens, list[tuple[int, float, list[Favourite]]], int]]:
        """For each layer its experts with their load and favourite tokens, and how many of those to show in context."""
        found = []
        for layer, load in zip(self.layers, self.loads):
            experts = [
                (e, float(load[e]), tokens)
                for e, tokens in enumerate(self.observed.favourites(layer, FAVOURITES))
            ]
            found.append((layer, experts, IN_CONTEXT if layer.num_experts <= pictures.FEW else 1))
        self.table(
            'favourites',
            ['layer', 'expert', 'rank', 'token', 'token_id', 'count', 'share', 'lift', 'before', 'after'],
            (
                (layer.name, e, rank, t.text, t.token, t.count, t.share, t.lift, t.before, t.after)
                for layer, experts, _ in found
                for e, _, tokens in experts
                for rank, t in enumerate(tokens, 1)
            ),
        )
        return found

    def write(self) -> XRay:
        from jinja2 import Environment, PackageLoader

        environment = Environment(
            loader=PackageLoader(__package__, ''),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters |= {'visible': visible, 'count': _count}
        made = [
            self.group_section('domain'),
            self.group_section('type'),
            self.training_section(),
            self.drift_section(),
            self.key_section(),
            self.coactivation_section(),
        ]
        sections = [section for section in made if section]
        page = environment.get_template('page.html.j2').render(
            report=self.report,
            summary=self.summary(),
            favourites=self.favourites(),
            sections=sections,
            domains=[(n, t) for n, t in zip(self.observed.domains, self.tokens['domain'].tolist())],
            tables=sorted(self.tables),
            log=math.log,
            log2=math.log2,
        )
        file = self.folder / PAGE
        file.write_text(page, encoding='utf-8')
        return XRay(file, sections, [layer.name for layer in self.layers])


def write(report: Report, folder: Path) -> XRay:
    """Writes the X-ray into `folder` over what an earlier one left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Writer(report, folder).write()
    except OSError as error:
        raise UserError(f"Can't write the X-ray to '{folder}': {error.strerror or error}.") from error


def principal(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, 2) coordinates on the first two principal components, and the fraction of the variance that each holds."""
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    u, s = np.pad(u, ((0, 0), (0, max(0, 2 - u.shape[1])))), np.pad(s, (0, max(0, 2 - len(s))))
    return u[:, :2] * s[:2], s[:2] ** 2 / max(float((s**2).sum()), 1e-30)


def visible(text: str) -> str:
    """A token's text with its white space to be seen."""
    return text.replace('\n', '⏎').replace('\t', '⇥').replace(' ', '␣') or '∅'


def _count(n: int) -> str:
    return (
        f'{n / 1e6:.1f} M'
        if n >= 1e6
        else f'{n / 1e3:.0f} k'
        if n >= 1e4
        else f'{n / 1e3:.1f} k'
        if n >= 1e3
        else str(n)
    )


def _span(values: np.ndarray) -> str:
    known = values[np.tril_indices(len(values), -1)]
    known = known[~np.isnan(known)]
    return f'from {known.min():.2f} to {known.max():.2f}' if len(known) else 'none known: no expert has moved'
