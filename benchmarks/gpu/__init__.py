"""What only a GPU can show, in one command: python -m benchmarks gpu

Parts run one after the other, each in a process of its own and with its own limit; one that fails or takes
too long is told, and the next goes on. What a part found is kept in OUT/NAME.json, and a rerun does only
those that are missing, so that an hour with a GPU can be had in pieces.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..measure import environment
from .calls import Bench, PartError
from .parts import PARTS, Part


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts that are missing in --out and writes gpu.json and gpu.md there; 0 where none failed."""
    parser = argparse.ArgumentParser(
        'python -m benchmarks gpu', description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument('--out', type=Path, default=Path('gpu-benchmark'), help='default: %(default)s')
    parser.add_argument('--device', default='cuda', help='default: %(default)s')
    parser.add_argument(
        '--tiny', action='store_true', help='tiny shapes: shows that it works, measures nothing'
    )
    parser.add_argument(
        '--minutes', type=float, default=9.0, help='begin no part after that time (default: %(default)s)'
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        '--parts', nargs='+', choices=names, default=names, metavar='PART', help=', '.join(names)
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out.resolve(), args.device, args.tiny)
    ends = time.monotonic() + args.minutes * 60
    for part in PARTS:
        if part.name in args.parts and not (args.out / f'{part.name}.json').exists():
            found = _carry_out(part, bench, ends - time.monotonic())
            if found is not None:
                (args.out / f'{part.name}.json').write_text(json.dumps(found, indent=1))
    return _report(bench)


def _carry_out(part: Part, bench: Bench, left: float) -> dict | None:
    """What a part found, or its failure; None where no time is left for it."""
    if left < 15:
        print(f'{part.name}: no time left; rerun the same command.', flush=True)
        return None
    print(f'{part.name}: {part.text}', flush=True)
    began, found = time.monotonic(), {'part': part.name, 'text': part.text, 'rows': [], 'failure': None}
    try:
        found['rows'] = part.run(bench, min(part.limit, left) if bench.device != 'cpu' else left)
    except PartError as error:
        found['failure'] = str(error)
    except Exception as error:  # noqa: BLE001 one part's failure, whatever it is, ends no other
        found['failure'] = f'{type(error).__name__}: {error}'
    found['seconds'] = round(time.monotonic() - began, 1)
    for line in [
        *map(_line, found['rows']),
        *filter(None, [found['failure'] and f'FAILED: {found["failure"]}']),
    ]:
        print(f'  {line}', flush=True)
    return found


def _line(row: dict) -> str:
    return ', '.join(f'{key} {value}' for key, value in row.items() if value is not None)


# -- report ------------------------------------------------------------------------------------------------


def _report(bench: Bench) -> int:
    """Writes what is there so far, as JSON and as a section of docs/performance.md; 1 where one failed."""
    found = [json.loads(f.read_text()) for p in PARTS if (f := bench.out / f'{p.name}.json').exists()]
    facts = environment()
    (bench.out / 'gpu.json').write_text(json.dumps({'environment': facts, 'parts': found}, indent=1))
    how = ' (tiny: shows that it works, measures nothing)' if bench.tiny else ''
    lines = [
        f'## On a GPU{how}',
        '',
        f'{facts["time"][:10]}, commit {facts["commit"]}, `python -m benchmarks gpu`.',
        '',
    ]
    for part in found:
        lines += [f'### {part["text"]}', '', *_table(part['rows'])]
        lines += [f'Failed: {part["failure"]}', ''] if part['failure'] else []
    (bench.out / 'gpu.md').write_text('\n'.join(lines), encoding='utf-8')
    failed = [
        part['part'] for part in found if part['failure'] or any('failure' in row for row in part['rows'])
    ]
    missing = [part.name for part in PARTS if part.name not in {f['part'] for f in found}]
    print(
        f'{len(found)} of {len(PARTS)} parts done, failed: {", ".join(failed) or "none"}; '
        f'see {bench.out / "gpu.md"}.'
    )
    if missing:
        print(f'Missing: {", ".join(missing)}.')
    return 1 if failed else 0


def _table(rows: list[dict]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    cells = [
        [str(row.get(c, '') if row.get(c) is not None else '').replace('|', '\\|') for c in columns]
        for row in rows
    ]
    heads = [c.replace('_', ' ') for c in columns]
    return ['| ' + ' | '.join(line) + ' |' for line in (heads, ['---'] * len(columns), *cells)] + ['']


if __name__ == '__main__':
    sys.exit(main())
