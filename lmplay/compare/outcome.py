"""The outcome of a comparison, for Python."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, unknown
from ..runs.finished import FinishedRun


@dataclass(frozen=True)
class Verdict:
    """One experiment against the baseline; differences are experiment minus baseline, so of a loss below zero
    is better.

    verdict    'better', 'worse', 'within noise', 'no verdict' or 'diverged'
    mean       difference, averaged over the seeds; None where a run diverged
    low, high  its confidence interval; None with one seed
    sentence   the verdict in words
    """

    label: str
    verdict: str
    mean: float | None
    low: float | None
    high: float | None
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    findings  all that the page shows, as plain values
    runs      label -> the experiment's finished runs, the baseline first
    report    the page
    """

    findings: dict = field(repr=False)
    runs: dict[str, list[FinishedRun]] = field(repr=False)
    report: Path

    @property
    def baseline(self) -> str:
        return self.findings['baseline']

    @property
    def verdicts(self) -> list[Verdict]:
        """Of every experiment but the baseline, in the order given."""
        found = []
        for entry in self.findings['experiments']:
            if 'comparison' in entry:
                result = entry['comparison']
                mean, low, high = (result.get(key) for key in ('mean', 'low', 'high'))
                found.append(Verdict(entry['label'], result['verdict'], mean, low, high, entry['sentence']))
        return found

    def __getitem__(self, label: str) -> Verdict:
        for verdict in self.verdicts:
            if verdict.label == label:
                return verdict
        raise UserError(unknown('experiment', label, [v.label for v in self.verdicts], 'this comparison'))

    def __str__(self) -> str:
        from .report import MARKS

        lines = [f'{MARKS[v.verdict]} {v.sentence}' for v in self.verdicts]
        lines += [f'  note: {warning}' for warning in self.findings['warnings']]
        return '\n'.join([*lines, f'Report: {self.report}'])
