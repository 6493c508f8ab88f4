"""The picture of the architecture page: the layers of the package and the imports between them."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.layers import FOR_EXPERIMENTS, ORDER, graph  # noqa: E402  the path comes first

PLACE = re.compile(r'<!-- layers -->.*?<!-- end of layers -->', re.S)
WIDTH, ROW, BOX, HIGH = 760, 62, 128, 34  # of the picture, from row to row, of a box


def reached(package: str, edges: dict[str, set[str]]) -> set[str]:
    """What a package imports, directly or not."""
    direct = edges.get(package, set())
    return direct | {far for near in direct for far in reached(near, edges)}


def needed(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: of a > b, b > c and a > c, not the last."""
    return [
        (package, other)
        for package, others in sorted(edges.items())
        for other in sorted(others)
        if not any(other in reached(between, edges) for between in others - {other})
    ]


def positions(edges: dict[str, set[str]]) -> dict[str, tuple[float, float]]:
    """Package -> the middle of its box: a row for each layer; experiments stand beside what they build on."""
    found = {}
    for i, row in enumerate(ORDER):
        for j, package in enumerate(sorted(row)):
            found[package] = (WIDTH * (j + 0.5) / len(row), ROW * (i + 0.5))
    above = min(i for i, row in enumerate(ORDER) if row & FOR_EXPERIMENTS)
    found['exp'] = (WIDTH * 5 / 6, ROW * (above - 0.5))
    return found


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
    return f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y + 24:.0f} {u:.0f} {v - 24:.0f} {u:.0f} {v:.0f}"/>'


def picture() -> str:
    """The layers as SVG, one line of HTML."""
    edges = graph()
    at = positions(edges)
    lines = ''.join(line(at[a], at[b]) for a, b in needed(edges))
    boxes = ''.join(box(package, at[package], imports) for package, imports in sorted(edges.items()))
    return (
        f'<figure class="layers"><svg viewBox="0 0 {WIDTH} {ROW * len(ORDER)}" role="img" '
        f'aria-label="Packages of lmplay and their imports">{lines}{boxes}</svg></figure>'
    )


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != 'architecture.md':
        return markdown
    drawn, times = PLACE.subn(lambda _: picture(), markdown)
    assert times == 1, 'docs/architecture.md has one place for the picture of its layers'
    return drawn
