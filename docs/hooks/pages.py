"""Pages that do not lie in docs/: the README is the home page, and every file of the repository that a page
links to becomes one, an experiment's folder by its README, source as it is, a notebook by its cells."""

import json
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
LINK = re.compile(r'(?<=\]\()([^)#\s:]+)(?=(#[^)]*)?\))')
FENCE = '~' * 8


def target(link: str, page: Path) -> Path | None:
    """The file of the repository that a link of a page leads to; a folder is its README."""
    file = (page.parent / link).resolve()
    file = file / 'README.md' if file.is_dir() else file
    return file if file.is_relative_to(ROOT) and file.is_file() else None


def place(file: Path) -> str:
    """Where the site has a file of the repository."""
    path = file.relative_to(ROOT)
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    if path == Path('README.md'):
        return 'index.md'
    if path.parts[:2] == ('lmplay', 'exp') and file.name == 'README.md':
        return f'experiments/{path.parent.name}.md'
    return f'source/{path.as_posix()}' + ('' if file.suffix == '.md' else '.md')


def text_of(file: Path) -> str:
    """The Markdown of a page."""
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.md':
        return text
    title = f'# {file.relative_to(ROOT).as_posix()}\n\n'
    if file.suffix == '.ipynb':
        return title + '\n\n'.join(map(cell, json.loads(text)['cells']))
    language = file.suffix.lstrip('.').replace('py', 'python')
    return f'{title}{FENCE}{language}\n{text}\n{FENCE}\n'


def cell(cell: dict) -> str:
    """A cell of a notebook: its text, or its code."""
    source = ''.join(cell['source'])
    return f'{FENCE}python\n{source}\n{FENCE}' if cell['cell_type'] == 'code' else source


def linked(page: Path) -> set[Path]:
    """The files outside docs/ that a Markdown page links to."""
    found = (target(link[0], page) for link in LINK.findall(page.read_text(encoding='utf-8')))
    return {file for file in found if file and not file.is_relative_to(DOCS)}


def pages() -> dict[str, Path]:
    """Place in the site -> file of the repository, for all pages."""
    waiting, found = [ROOT / 'README.md', *DOCS.glob('*.md')], {}
    while waiting:
        file = waiting.pop()
        if place(file) not in found:
            found[place(file)] = file
            waiting += linked(file) if file.suffix == '.md' else []
    return found


def on_files(files, config):
    config.extra['pages'] = pages()
    for uri, file in config.extra['pages'].items():
        if not file.is_relative_to(DOCS):
            inclusion = InclusionLevel.NOT_IN_NAV if uri.startswith('source/') else InclusionLevel.INCLUDED
            files.append(File.generated(config, uri, content=text_of(file), inclusion=inclusion))
    return files


def on_page_markdown(markdown, page, config, files):
    file = config.extra['pages'][page.file.src_uri]
    here = PurePosixPath(page.file.src_uri).parent

    def moved(link: re.Match) -> str:
        found = target(link[0], file)
        return os.path.relpath(place(found), here) if found else link[0]

    return LINK.sub(moved, markdown) if file.suffix in ('.md', '.ipynb') else markdown
