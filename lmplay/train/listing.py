"""--exp list: what can be trained."""

import json
from collections.abc import Sequence

from ..base.runner_list import Entry
from ..cli import cell, console


def show_experiments(entries: Sequence[Entry], *, verbose: bool, as_json: bool) -> None:
    """Prints a line for each experiment; verbose: with its module and parameters."""
    if as_json:
        print(json.dumps([_row(e) for e in entries], indent=1, default=str))
        return
    from rich.table import Table

    out = console()
    table = Table(box=None, header_style='bold')
    for heading in ('name', 'description', *(('from', 'parameters') if verbose else ())):
        table.add_column(heading, no_wrap=heading == 'name', overflow='fold')
    for e in entries:
        what = cell(e.description)
        if e.error is not None:
            what = cell(f'broken: {e.error}')
            what.stylize('red')
        parameters = ' '.join(f'{k}={v}' for k, v in e.parameters.items())
        table.add_row(cell(e.name), what, *((cell(e.module), cell(parameters)) if verbose else ()))
    out.print(table)


def _row(e: Entry) -> dict:
    return {
        'name': e.name,
        'description': e.description,
        'module': e.module,
        'where': e.where,
        'parameters': e.parameters,
        'error': e.error,
    }
