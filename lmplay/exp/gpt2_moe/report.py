"""What `lmp_verify_moe` measured: its tables, and a run log in Markdown."""

import datetime
import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .checks import Checks

# (title, ((heading, figure), ...)) of each table
TABLES = (
    ('Warm-Start Parity (Relative Error)', (('Relative Error', 'parity'),)),
    ('Loss Checks', (('Load Balance Loss', 'load balance'), ('Z Loss', 'z-loss'))),
    ('Router Gradient Norms (STE)', (('Gradient Norm', 'gradient'),)),
    (r'Noisy Routing Deltas', ((r'Mean \|noisy-clean\|', 'noise'),)),
)


def tables(checks: Checks) -> str:
    """The tables of what was measured by layer; one of a check that did not apply is left out."""
    parts = []
    for title, columns in TABLES:
        rows = [
            [str(layer), *(figures[name].text for _, name in columns), _status(figures, columns)]
            for layer, figures in checks.figures.items()
            if all(name in figures for _, name in columns)
        ]
        if rows:
            heading = ['Layer', *(heading for heading, _ in columns), 'Status']
            parts.append(f'### {title}\n\n{_table([heading, *rows])}')
    return '\n\n'.join(parts)


def _status(figures, columns) -> str:
    return 'PASS' if all(figures[name].good for _, name in columns) else 'FAIL'


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
    return '\n'.join([lines[0], '| ' + ' | '.join('-' * width for width in widths) + ' |', *lines[1:]])


def environment(device: str) -> dict[str, str]:
    """Hardware, device and versions."""
    import torch

    hardware = torch.cuda.get_device_name() if device.startswith('cuda') else _processor()
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'transformers')}
    return {
        'Hardware': hardware,
        'Device': device,
        'Python': platform.python_version(),
        'PyTorch': versions['torch'],
        'Transformers': versions['transformers'],
        'Platform': platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    return next(models, platform.machine())


def _commit() -> str:
    """The checkout that this code is from, '' where it is installed from elsewhere."""
    folder = Path(__file__).resolve().parent
    found = [
        subprocess.run(['git', '-C', str(folder), *command], capture_output=True, text=True, check=False)
        for command in (['rev-parse', '--short', 'HEAD'], ['status', '--porcelain', '.'])
    ]
    if found[0].returncode:
        return ''
    return f'`{found[0].stdout.strip()}`{" (dirty)" if found[1].stdout.strip() else ""}'


@dataclass(frozen=True)
class RunLog:
    """A verification as it went.

    about    what the model is made of
    outcome  of each check, None where it did not apply
    lines    what was printed
    seconds  it took
    """

    command: str
    about: str
    checks: Checks
    outcome: list[bool | None]
    lines: list[str]
    warnings: list[str]
    seconds: float

    def markdown(self, run_id: str) -> str:
        """The log of the run."""
        failed, skipped = self.outcome.count(False), self.outcome.count(None)
        ran = len(self.outcome) - skipped
        environment_ = environment(str(self.checks.device)) | {'Runtime': f'{self.seconds:.0f} seconds'}
        header = {
            'Run ID': run_id,
            'Date': datetime.date.today().isoformat(),
            'Status': 'Failed' if failed else 'Completed',
            'Type': 'Verification',
            'Commit': _commit(),
            'Command': f'`{self.command}`',
        }
        results = [
            f'- **Tests run:** {ran}\n- **Tests passed:** {ran - failed}\n- **Failures:** {failed}',
            tables(self.checks),
        ]
        parts = [
            f'# Experiment: Verification of {self.checks.model.name}',
            '\n'.join(f'**{name}:** {value}  ' for name, value in header.items() if value),
            '## Objective',
            'Verify that the mixture of experts computes what it should: warm start, losses, gradient of the '
            'router, noise, masking, generation.',
            '## Configuration',
            f'```yaml\n{self._configuration()}\n```',
            '## Environment',
            '\n'.join(f'- **{name}:** {value}' for name, value in environment_.items()),
            '## Results',
            '### Summary',
            *results,
            *self._samples(),
            '## Log Excerpt',
            '```\n' + '\n'.join(self.lines).strip() + '\n```',
            '## Anomalies / Issues',
            '\n'.join(f'- {line}' for line in self.warnings) or '- None.',
            '## Conclusion',
            f'{ran - failed} of {ran} checks passed'
            + (f'; {skipped} did not apply to a trained model.' if skipped else '.'),
        ]
        return '\n\n'.join(parts) + '\n'

    def _configuration(self) -> str:
        model = self.checks.model
        values = dict(
            base_model=self.about,
            moe_layers=list(model.moe_layers),
            num_experts=model.num_experts,
            top_k=model.top_k,
            noise_std=next(iter(model.moe_layers.values())).noise_std if model.moe_layers else 0,
            seed=0,
        )
        return '\n'.join(f'{name}: {value}' for name, value in values.items())

    def _samples(self) -> list[str]:
        notes, parts = self.checks.notes, []
        if 'masking' in notes:
            parts += ['### Attention Masking', f'- **Max diff (batched vs single):** {notes["masking"]}']
        if 'generated' in notes:
            quoted = '\n'.join(f'> {line}'.rstrip() for line in notes['generated'].splitlines())
            parts += ['### Generation Sample', f'Prompt: "{notes["prompt"]}"', 'Generated:', quoted]
        return parts
