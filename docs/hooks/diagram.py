"""The picture of the architecture page: the layers of the package and the imports between them."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.layers import FOR_EXPERIMENTS, ORDER, graph  # noqa: E402  the path comes first

PLACE = re.compile(r'<!-- layers -->.*?<!-- end of layers -->', re.S)
WIDTH, ROW, BOX, HIGH = 760, 58, 132, 34  # of the picture, from row to row, of a box
GROUND = next(i for i, row in enumerate(ORDER) if 'files' in row)  # from here on, everything above imports it


def reached(package: str, edges: dict[str, set[str]]) -> set[str]:
    """What a package imports, directly or not."""
    direct = edges.get(package, set())
    return direct | {far for near in direct for far in reached(near, edges)}


def needed(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports above the ground floor that do not follow from others: of a > b, b > c and a > c, not the
    last."""
    ground = set().union(*ORDER[GROUND:])
    return [
        (package, other)
        for package, others in sorted(edges.items())
        for other in sorted(others - ground)
        if package not in ground and not any(other in reached(between, edges) for between in others - {other})
    ]


def positions(lines: list[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Package -> the middle of its box: a row for each layer, in the order of those above that import it.

    Packages that have a row to themselves stand left and right in turn, so that lines pass them. Experiments
    stand beside what they build on.
    """
    at: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(ORDER):

        def above(package: str) -> tuple[float, str]:
            found = [at[a][0] for a, b in lines if b == package and a in at]
            return sum(found) / len(found) if found else 0, package

        beside = (-80, 80)[i % 2] if len(row) == 1 and i < GROUND else 0
        for j, package in enumerate(sorted(row, key=above)):
            at[package] = (WIDTH * (j + 0.5) / len(row) + beside, ROW * (i + 0.5))
    first = min(i for i, row in enumerate(ORDER) if row & FOR_EXPERIMENTS)
    return at | {'exp': (WIDTH - 0.75 * BOX, ROW * (first - 0.5))}


def box(package: str, at: tuple[float, float], imports: set[str]) -> str:
    x, y = at
    kind = ' class="exp"' if package == 'exp' else ''
    told = f'{package} imports {", ".join(sorted(imports)) or "none of them"}'
    return (
        f'<g{kind}><title>{told}</title>'
        f'<rect x="{x - BOX / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{BOX}" height="{HIGH}" rx="4"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}">{package}</text></g>'
    )


def line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (u, v) = start, end
    y, v = y + HIGH / 2, v - HIGH / 2
    bend = (v - y) / 2
    return f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v:.0f}"/>'


def picture() -> str:
    """The layers as SVG, one line of HTML."""
    edges = graph()
    drawn = needed(edges)
    at = positions(drawn)
    lines = ''.join(line(at[a], at[b]) for a, b in drawn)
    boxes = ''.join(box(package, at[package], imports) for package, imports in sorted(edges.items()))
    ground = (
        f'<rect class="ground" y="{ROW * GROUND}" width="{WIDTH}" height="{ROW * (len(ORDER) - GROUND)}"/>'
    )
    return (
        f'<figure class="layers"><svg viewBox="0 0 {WIDTH} {ROW * len(ORDER)}" role="img" '
        f'aria-label="Packages of lmplay and their imports">{ground}{lines}{boxes}</svg>'
        '<figcaption>A line is an import that does not follow from others; all import what is on the ground '
        'floor (shaded). What a package imports is shown when the pointer rests on it.</figcaption></figure>'
    )


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != 'architecture.md':
        return markdown
    drawn, times = PLACE.subn(lambda _: picture(), markdown)
    assert times == 1, 'docs/architecture.md has one place for the picture of its layers'
    return drawn
