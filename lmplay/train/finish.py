"""The end of a run: summary.json, samples of generated text, the picture of its curves."""

import math
from collections.abc import Sequence
from typing import Any

from ..checks import check_contract
from ..errors import UserError
from ..files import write_text
from ..generate.generator import generate
from ..plots.plot import plot_run
from ..runs.directory import RunDirectory
from ..runs.environment import load
from ..runs.recorder import read_metrics
from ..tokenizers import as_tokenizer
from .evaluate import Evaluation
from .record import EVENTS
from .resolve import ResolvedStage
from .trainer import Trainer

TEXTS = 4  # texts generated, each after a prompt of another domain
PROMPT_TOKENS, NEW_TOKENS = 32, 64
WIDTH = 100  # characters shown of a sample


def finish(directory: RunDirectory, trainer: Trainer, stages: Sequence[ResolvedStage], *, plan: str) -> None:
    """Writes what remains of a finished run and tells its user where it is.

    A picture that fails is a warning.
    """
    state, model, console = trainer.state, trainer.model, trainer.console
    assert trainer.evaluation is not None and state.best_loss is not None
    texts = sample_texts(trainer)
    changes = [r for r in read_metrics(directory.path) if r.get('event') in EVENTS]
    found = check_contract(model, lambda: stages[-1].runner.build(trainer.compute.device))
    broken = [f'{f.check}: {f.problem}' for f in found if f.problem]
    summary = _summary(trainer, stages, plan, texts, changes, broken)
    trainer.recorder.flush()
    directory.finish(summary)
    file = trainer.checkpoints.header.get('exp_file')
    by_path = f" --exp '{file}'" if file else ''  # code runs only where it is named
    told = (
        f'Finished: {state.tokens:,} tokens in {state.seconds:.0f} s. '
        f'Validation loss {state.validation_loss:.4f}, the best was {state.best_loss:.4f}, perplexity '
        f'{math.exp(min(state.best_loss, 700)):.2f}.\n'
        f'{_also_measured(trainer.evaluation)}'
        f'Curves:     {_curves(directory)}\n'
        f'Checkpoint: {directory.checkpoints / "best"}{_between_saves(trainer)}\n'
        f"Generate:   lmp_generator {directory.path} --prompt 'Once upon a time'{by_path}"
    )
    told = '\n'.join([told, *_notes(stages, changes)])
    write_text(directory.path / 'summary.txt', f'{plan}: {model.name}, seed {trainer.seed}\n{told}\n')
    console.line('\nSamples, each after the end of a held-out prompt:')
    for text in texts:
        prompt, sample = (' '.join(text[part].split()) for part in ('prompt', 'sample'))
        console.line(f'  {text["domain"]:<8} ...{prompt[-WIDTH // 2 :]} >> {sample[:WIDTH]}')
    console.line(f'\n{told}')
    for problem in broken:
        console.line(
            f'WARNING: the trained model breaks the contract, and is not compared with others. {problem}'
        )


def _summary(
    trainer: Trainer,
    stages: Sequence[ResolvedStage],
    plan: str,
    texts: list[dict[str, str]],
    changes: list[dict],
    broken: list[str],
) -> dict[str, Any]:
    state, model = trainer.state, trainer.model
    assert trainer.evaluation is not None
    return {
        'model': model.name,
        'exp': stages[-1].entry_name,
        'plan': plan,
        'seed': trainer.seed,
        'steps': state.total_step,
        'samples': state.total_samples,
        'tokens': state.tokens,
        'flops': state.flops,
        'seconds': round(state.seconds, 1),
        'load': load(),
        'train_loss': state.loss,
        'validation_loss': state.validation_loss,
        'best_validation_loss': state.best_loss,
        'skipped_steps': state.skipped,
        'evaluation': trainer.evaluation.metrics,
        'prompt': texts[0]['prompt'],
        'sample': texts[0]['sample'],
        'texts': texts,
        'changes': [{key: r.get(key) for key in ('event', 'stage', 'step', 'message')} for r in changes],
        'not_applied': {stage.name: stage.lacking for stage in stages if stage.lacking},
        'contract': {'broken': broken, 'causal': model.causal, 'batch_dependent': model.batch_dependent},
    }


def _notes(stages: Sequence[ResolvedStage], changes: list[dict]) -> list[str]:
    """What of the plan did not apply, and what changed within the run."""
    applied = [note for stage in stages for note in stage.notes]
    return [*applied, *(f'After {r.get("step"):,} steps: {r.get("message")}' for r in changes)]


def _between_saves(trainer: Trainer) -> str:
    """What to add where the best weights were not saved."""
    state = trainer.state
    if state.best_is_saved or state.best_saved_loss is None:
        return ''
    return (
        f', of validation loss {state.best_saved_loss:.4f}: the best evaluation fell between two saves '
        '(--save-interval)'
    )


def _also_measured(evaluation: Evaluation) -> str:
    """A line of the last evaluation's other numbers: with padding, and those that the model reports."""
    numbers = {k: v for k, v in evaluation.metrics.items() if k.endswith('_with_pad')}
    numbers |= {k: v.item() for k, v in evaluation.model_metrics.items() if not v.dim()}
    listed = ', '.join(f'{name} {value:.4f}' for name, value in numbers.items())
    return f'Measured:   {listed}\n' if listed else ''


def sample_texts(trainer: Trainer) -> list[dict[str, str]]:
    """A generated text for each of the first domains: domain, prompt, sample."""
    model, evaluation = trainer.model, trainer.evaluation
    assert evaluation is not None
    tokenizer = as_tokenizer(model.tokenizer)
    domains = list(evaluation.examples)[:TEXTS]
    heads = (evaluation.example(tokenizer, domain)['prompt'] for domain in domains)
    prompts = [tokenizer.encode(head)[-PROMPT_TOKENS:] for head in heads]
    sampling: dict[str, Any] = dict(
        temperature=0.8, top_k=50, seed=trainer.seed, stop_token=tokenizer.eot_token
    )
    try:
        continued = generate(model, prompts, max_new_tokens=NEW_TOKENS, **sampling)
        samples = [tokenizer.decode(new) for new in continued]
    except UserError as error:  # a run that diverged still gets its summary and its curves
        samples = [f'(none: {error})'] * len(domains)
    texts = zip(domains, prompts, samples)
    return [{'domain': d, 'prompt': tokenizer.decode(ids), 'sample': text} for d, ids, text in texts]


def _curves(directory: RunDirectory) -> str:
    try:
        return str(plot_run(directory.path))
    except Exception as error:  # noqa: BLE001  a picture is decoration; the run is finished without it
        return f'could not be drawn ({type(error).__name__}: {error})'
