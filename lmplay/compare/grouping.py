"""Which finished runs are the seeds of one experiment, and which experiments may be compared."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError, UserError
from ..files import user_path
from ..runs.finished import (
    NOT_SETTINGS,
    SETTINGS,
    STAGES,
    SUMMARY,
    FinishedRun,
    StartedRun,
    find_below,
    read_run,
    read_started,
)
from ..runs.recorder import read_metrics

TRIALS = 'tuning'  # the folder in which a comparison keeps the runs of its search for a learning rate
METRICS = {'loss': 'nats per token', 'bits_per_byte': 'bits per byte'}
FINGERPRINTS = {
    'data': 'the training data or its order',
    'tokenizer': 'the tokenizer',
    'evaluation': 'the held-out tokens',
    'text': 'the held-out text',
}


def find_runs(places: Iterable[Path]) -> list[FinishedRun]:
    """Every finished run at or below these directories. Raises DataError for one that has none."""
    runs: dict[Path, FinishedRun] = {}
    for place in map(user_path, places):
        if not place.is_dir():
            raise DataError(f"There is no directory '{place}'.")
        found = [
            f.parent
            for f in find_below(place, SUMMARY)
            if (f.parent / STAGES).is_file() and TRIALS not in f.relative_to(place).parts
        ]
        if not found:
            raise DataError(f"There is no finished run in '{place}' or below it.")
        runs |= {f.resolve(): read_run(f) for f in found}
    return list(runs.values())


def find_unfinished(places: Iterable[Path], runs: dict[str, list[FinishedRun]]) -> dict[str, dict[int, str]]:
    """label -> seed -> why its run below these directories ended early, or that it has not ended."""
    found: dict[str, dict[int, str]] = {}
    alike = {_asked(run): label for label, members in runs.items() for run in members}
    for folder, why in find_started(places).items():
        run = read_started(folder)
        label = alike.get(_asked(run)) if run else None
        if run and label and run.settings['seed'] not in {r.seed for r in runs[label]}:
            found.setdefault(label, {})[run.settings['seed']] = why
    return found


def find_started(places: Iterable[Path]) -> dict[Path, str]:
    """Folder -> why a run at or below these directories ended early, or that it has not ended."""
    return {
        file.parent: _why_unfinished(file.parent)
        for place in map(user_path, places)
        for file in find_below(place, SETTINGS)
        if not (file.parent / SUMMARY).is_file() and TRIALS not in file.relative_to(place).parts
    }


def _asked(run: StartedRun) -> str:
    """What a run was started with, its seed and place apart."""
    places = {*NOT_SETTINGS} - {'stages', 'exp', 'model', 'overrides'}
    return json.dumps({k: v for k, v in run.settings.items() if k not in places}, sort_keys=True, default=str)


def _why_unfinished(folder: Path) -> str:
    events = [r for r in read_metrics(folder) if r.get('event') == 'stopped']
    return str(events[-1].get('message')) if events else 'it was killed, or is still training'


def group(runs: list[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """label -> the runs of one experiment with equal settings, by seed, in the order of the first."""
    groups: dict[tuple, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault((run.exp, _identity(run)), []).append(run)
    named: dict[str, list[FinishedRun]] = {}
    for (exp, _), members in groups.items():
        alike = [g[0].configuration for (other, _), g in groups.items() if other == exp]
        label = _label(members[0], alike)
        while label in named:
            label += '+'
        named[label] = sorted(members, key=lambda r: r.seed)
    return named


def _identity(run: FinishedRun) -> str:
    """What the seeds of one experiment have in common."""
    own = {k: v for k, v in run.configuration.items() if '.' in k or k in ('amp', 'tokenizer')}
    prints = run.fingerprints
    return json.dumps([own, prints['tokenizer'], prints['data']], sort_keys=True, default=str)


def _label(run: FinishedRun, alike: list[dict]) -> str:
    """The experiment's name, with up to four settings in which it differs from others of that name."""
    own = run.configuration
    differing = [k for k in own if ('.' in k or k == 'tokenizer') and any(c.get(k) != own[k] for c in alike)]
    return run.exp + ''.join(f',{k.split(".", 1)[-1]}={own[k]}' for k in differing[:4])


def check_comparable(fingerprints: dict[str, dict[str, str]], metric: str) -> None:
    """Raises UserError unless all have equal fingerprints; fingerprints: label -> name -> digest.

    Bits per byte need equal held-out text only.
    """
    baseline, *others = fingerprints
    for other in others:
        if metric == 'bits_per_byte':
            if fingerprints[other]['text'] != fingerprints[baseline]['text']:
                raise UserError(
                    f'{other} and {baseline} were evaluated on different held-out texts; bits per byte '
                    'compare across tokenizers and training data, but not across texts. A tokenizer that '
                    'does not reproduce its text (lower case, unknown characters) predicts another one.'
                )
            continue
        for name in ('data', 'tokenizer', 'evaluation'):
            if fingerprints[other][name] != fingerprints[baseline][name]:
                raise UserError(
                    f'{other} and {baseline} differ in {FINGERPRINTS[name]}, so their losses per token '
                    'cannot be compared. --metric bits_per_byte compares across data and tokenizers.'
                )


def fingerprints_of(runs: dict[str, list[FinishedRun]]) -> dict[str, dict[str, str]]:
    """label -> fingerprints. Raises UserError where the runs of one label differ among themselves."""
    found = {}
    for label, members in runs.items():
        found[label] = members[0].fingerprints
        for name, what in FINGERPRINTS.items():
            if any(r.fingerprints[name] != found[label][name] for r in members):
                raise UserError(
                    f'The runs of {label} differ among themselves in {what}: '
                    f'{", ".join(str(r.folder) for r in members)}.'
                )
    return found


def check_causal(runs: dict[str, list[FinishedRun]]) -> None:
    """Raises UserError where causal models meet non-causal ones, whose loss is no next-token loss."""
    causal = {label: members[0].causal for label, members in runs.items()}
    if len(set(causal.values())) > 1:
        raise UserError(
            f'{", ".join(label for label, own in causal.items() if not own)} is not causal: its loss is not '
            'a next-token loss and cannot be compared with that of '
            f'{", ".join(label for label, own in causal.items() if own)}.'
        )


def check_contracts(runs: dict[str, list[FinishedRun]]) -> None:
    """Raises UserError for trained models that break the contract:
    what they measured is no loss to compare."""
    for label, members in runs.items():
        for run in members:
            if run.broken_contract:
                raise UserError(
                    f"{label} cannot be compared: the trained model of '{run.folder}' breaks the contract "
                    f'({run.broken_contract[0]}).'
                )


def differing_settings(runs: dict[str, list[FinishedRun]]) -> list[dict]:
    """Settings that differ, {'setting', 'values': {label: text}}; values within a label are joined."""
    configurations = {label: [r.configuration for r in members] for label, members in runs.items()}
    keys = dict.fromkeys(k for group in configurations.values() for c in group for k in c)
    rows = []
    for key in keys:
        values = {
            label: ' / '.join(dict.fromkeys(_text(c.get(key)) for c in group))
            for label, group in configurations.items()
        }
        if len(set(values.values())) > 1 or any(' / ' in v for v in values.values()):
            rows.append({'setting': key, 'values': values})
    return rows


def _text(value) -> str:
    if value is None:
        return '–'
    return f'{value:g}' if isinstance(value, float) else str(value)
