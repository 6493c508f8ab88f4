"""Writes an X-ray: its tables as CSV first, then its pictures as SVG, and one page that holds all of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .findings import Findings, Report
from .sections import Section, count, draw_sections
from .tables import write_tables

PAGE = 'index.html'


@dataclass
class XRay:
    """An X-ray that was written: its page, what the page shows in pictures, and what it calls the layers."""

    page: Path
    sections: list[Section]
    layers: list[str]


def write(report: Report, folder: Path) -> XRay:
    """Writes the X-ray into `folder`, over an earlier one. Raises UserError where it can't be written."""
    findings = Findings(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tables = write_tables(findings, folder)
        sections = draw_sections(findings, folder)
        page = folder / PAGE
        page.write_text(_page(findings, sections, tables), encoding='utf-8')
    except OSError as error:
        raise UserError(f"Can't write the X-ray to '{folder}': {error.strerror or error}.") from error
    return XRay(page, sections, findings.names)


def _page(findings: Findings, sections: list[Section], tables: list[str]) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader('lmplay.routing', ''),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {'visible': visible, 'count': count}
    text = environment.get_template('page.html.j2').render(
        report=findings.report,
        summaries=[(each.report.checkpoint, each.summary) for each in (findings, findings.other) if each],
        favourites=findings.favourites,
        sections=sections,
        domains=list(zip(findings.groups['domain'], findings.tokens['domain'].tolist())),
        tables=tables,
        log=math.log,
        log2=math.log2,
    )
    return text.encode('utf-8', 'replace').decode('utf-8')


def visible(text: str) -> str:
    """A token's text with its white space to be seen."""
    return text.replace('\n', '⏎').replace('\t', '⇥').replace(' ', '␣') or '∅'
