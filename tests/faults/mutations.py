"""(c) Every file of a run, a cache and a comparison, damaged, before every command that reads it."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmplay.compare.__main__ import main as compare
from lmplay.export.__main__ import main as export
from lmplay.export.clean import main as clean
from lmplay.files import sealed
from lmplay.generate.__main__ import main as generate
from lmplay.plots.__main__ import main as plotstats
from lmplay.routing.__main__ import main as routing
from lmplay.train.__main__ import main as train

from . import material
from .mutate import damages_of, reshape, to_bytes
from .outcomes import Ended, Outcome, call, in_children, judge
from .processes import weights_of

OWN = ('seconds', 'tokens_per_second', 'memory', 'data_wait', 'mfu', 'load')


@dataclass
class Command:
    """A command that reads files: run() -> how it ended, and its result where that should not change."""

    name: str
    run: Callable[[], tuple[Ended, object]]


def _contents(folder: Path, *patterns: str) -> dict[str, str]:
    files = sorted(f for p in patterns for f in folder.rglob(p) if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha1(f.read_bytes()).hexdigest() for f in files}


class Commands:
    """Commands on the material, each writing to a scratch folder of its own process."""

    def __init__(self, made: material.Material, scratch: Path):
        self.made, self.scratch = made, scratch
        self.routed, self.dense = made.run('some_test'), made.run('test_runner')

    def _new(self) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        return self.scratch / 'out'

    def of_checkpoint(self, run: Path) -> list[Command]:
        return [
            Command(f'lmp_generator {run.parent.name}', lambda: self._generate(run)),
            Command(f'lmp_export {run.parent.name}', lambda: self._export(run)),
            Command(f'lmp_cleanmodel {run.parent.name}', lambda: self._clean(run)),
            Command(f'--initial-model {run.parent.name}', lambda: self._warm(run)),
        ]

    def of_resume(self) -> list[Command]:
        return [Command('resume', self._resume)]

    def of_records(self, run: Path) -> list[Command]:
        found = [
            Command('lmp_compare --runs', self._compare_runs),
            Command('lmp_compare --leaderboard', self._leaderboard),
            Command(f'lmp_plotstats {run.parent.name}', lambda: self._plot(run)),
            Command('lmp_compare', self._compare),
        ]
        return [*found, Command('lmp_routing', self._routing)] if run == self.routed else found

    def of_comparison(self) -> list[Command]:
        return [Command('lmp_compare', self._compare)]

    def of_cache(self) -> list[Command]:
        return [Command('lmp_trainer', self._train)]

    def _generate(self, run: Path):
        ended = call(generate, [run, '--prompt', 'Ada', '--max-new-tokens', 12, '--device', 'cpu'])
        return ended, ended.out

    def _export(self, run: Path):
        out = self._new()
        ended = call(export, [run, '--to', out, '--format', 'safetensors'])
        return ended, ([weights_of(f) for f in out.glob('*.safetensors')], _contents(out, '*.json'))

    def _clean(self, run: Path):
        out = self._new()
        ended = call(clean, [run, '--model-out', out])
        return ended, [weights_of(f) for f in out.glob('*.safetensors')]

    def _warm(self, run: Path):
        out = self._new()
        more = ['--initial-model', run, '--steps', 1, '--exp', run.parent.name.rpartition('-')[0]]
        ended = call(train, self.made.training(out, *more))
        return ended, _curve(out)

    def _resume(self):
        out = material.copy(self.made.stopped, self._new())
        ended = call(train, self.made.training(out, '--steps', 6))
        return ended, _curve(out)

    def _train(self):
        out = self._new()
        ended = call(train, self.made.training(out, '--steps', 1))
        return ended, _curve(out)

    def _compare_runs(self):
        out = self._new()
        ended = call(compare, ['--runs', self.dense.parent, self.routed.parent, '--out', out])
        return ended, (ended.out, _contents(out, '*.csv', '*.json', '*.svg'))

    def _compare(self):
        out = self.made.comparison
        ended = call(compare, self.made.compared)
        return ended, (ended.out, _contents(out, 'results.json', '*.csv'))

    def _leaderboard(self):
        out = self._new()
        ended = call(compare, ['--leaderboard', self.made.comparison, '--out', out])
        return ended, (ended.out, _contents(out, '*.csv'))

    def _plot(self, run: Path):
        out = self._new()
        ended = call(plotstats, [run, '--out', out.with_suffix('.svg')])
        return ended, _contents(self.scratch, '*.svg')

    def _routing(self):
        out = self._new()
        ended = call(routing, [self.routed, '--out', out, '--device', 'cpu'])
        return ended, _contents(out, '*.csv', '*.svg')


def _curve(run: Path) -> object:
    """What a run recorded, but for timings and the like, which differ from process to process."""
    try:
        lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_bytes().splitlines()]
    except (OSError, ValueError):
        return None
    return [
        {k: v for k, v in r.items() if k not in OWN}
        for r in lines
        if r.get('kind') in ('train', 'validation')
    ]


def targets(made: material.Material, commands: Commands) -> dict[Path, list[Command]]:
    """File -> the commands that read it."""
    found: dict[Path, list[Command]] = {}
    for run, of_records in ((commands.dense, True), (commands.routed, True), (made.stopped, False)):
        for file in sorted(f for f in run.rglob('*') if f.is_file() and not f.is_symlink()):
            inside = 'checkpoints' in file.parts
            if not of_records:
                found[file] = commands.of_resume()
            elif inside:
                found[file] = commands.of_checkpoint(run)
            elif 'source' not in file.parts and file.suffix in ('.json', '.jsonl', '.npz', '.csv'):
                found[file] = commands.of_records(run)
    for file in sorted(f for f in made.comparison.rglob('*.json') if 'runs' not in f.parts):
        found[file] = commands.of_comparison()
    for file in sorted(f for f in made.cache.rglob('*') if f.is_file()):
        found[file] = commands.of_cache()
    return {file: read for file, read in found.items() if file.name not in ('.lock', 'summary.txt')}


def _resealed(data: bytes, rng: random.Random) -> bytes:
    """As `json_shape`, with the checksum made to fit."""
    content = reshape(json.loads(data), rng)
    return to_bytes(sealed(content) if isinstance(content, dict) else content)


def cases(
    made: material.Material, scratch: Path, *, rounds: int, seed: int
) -> Iterator[tuple[str, Callable[[], tuple[Outcome, str]]]]:
    """`rounds` damages of each file."""
    commands = Commands(made, scratch)
    files = targets(made, commands)
    expected = _undamaged(files)
    for i in range(rounds):
        for file, readers in files.items():
            name = f'{file.relative_to(made.folder)}'
            rng = random.Random(f'{seed} {i} {name}')
            damages = damages_of(file.name)
            if file.name in ('state.json', 'meta.json', 'summary.json', 'comparison.json'):
                damages = (*damages, *[_resealed] * 8)
            damage = rng.choice(damages)
            chosen = readers if rounds > 1 else [rng.choice(readers)]  # one, in the short form
            yield (
                f'seed {seed} round {i}: {damage.__name__} of {name}',
                _case(file, damage, rng, chosen, expected),
            )


def _undamaged(files: dict[Path, list[Command]]) -> dict[str, object]:
    """Command -> its result."""
    found = {}
    for reader in {reader.name: reader for readers in files.values() for reader in readers}.values():
        ended, found[reader.name] = reader.run()
        assert ended.code == 0, (reader.name, ended)
    return found


def _case(file: Path, damage, rng, readers: list[Command], expected: dict) -> Callable:
    def run() -> tuple[Outcome, str]:
        return _damaged(file, damage, rng, readers, expected)

    return run


def _damaged(file: Path, damage, rng, readers: list[Command], expected: dict) -> tuple[Outcome, str]:
    """The worst outcome of the commands, with what they said. The file is put back."""
    whole = file.read_bytes()
    changed = damage(whole, rng)
    worst, told = Outcome.SURVIVED, ''
    for reader in readers:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(changed)
        try:
            ended, result = reader.run()
        finally:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(whole)
        known = None if damage is _resealed else expected[reader.name]
        outcome = judge(ended, result, known) if changed != whole else Outcome.SURVIVED
        if list(Outcome).index(outcome) > list(Outcome).index(worst):
            worst, told = outcome, f'{reader.name}: {ended.code} {ended.err[-500:]} {ended.error}'
    return worst, told


def mutations(
    made: material.Material, scratch: Path, *, rounds: int, seed: int
) -> Iterator[tuple[str, Outcome, str]]:
    np.seterr(all='ignore')
    return in_children(cases(made, scratch, rounds=rounds, seed=seed))
