"""The end of a run: summary.json, samples of generated text, the picture of its curves."""

import json
import os

from ..base.base_model import LMBase
from ..errors import UserError
from ..generate.generator import generate
from ..plots.plot import plot_run
from ..tokenizers import as_tokenizer

TEXTS = 4  # texts generated, each after a prompt of another domain


def finish(run, model: LMBase) -> dict:
    """Writes what remains of a finished run and tells its user where it is."""
    p = run.progress
    tokenizer = as_tokenizer(model.tokenizer)
    domains = list(run.evaluation.rows)[:TEXTS]
    prompts = [
        tokenizer.encode(run.evaluation.example(tokenizer, domain)['prompt'])[-32:] for domain in domains
    ]
    try:
        continued = generate(
            model,
            prompts,
            max_new_tokens=64,
            temperature=0.8,
            top_k=50,
            seed=run.seed,
            stop_token=tokenizer.eot_token,
        )
        samples = [tokenizer.decode(new) for new in continued]
    except UserError as error:  # a run that diverged still gets its summary and its curves
        samples = [f'(none: {error})'] * len(domains)
    texts = [
        {'domain': d, 'prompt': tokenizer.decode(ids), 'sample': s}
        for d, ids, s in zip(domains, prompts, samples)
    ]
    first = texts[0]
    summary = {
        'model': model.name,
        'exp': run.exp,
        'plan': run.plan.name,
        'seed': run.seed,
        'steps': p.total_step,
        'samples': p.total_samples,
        'tokens': p.tokens,
        'flops': p.flops,
        'seconds': round(p.seconds, 1),
        'train_loss': p.loss,
        'validation_loss': p.validation_loss,
        'best_validation_loss': p.best_loss,
        'skipped_steps': p.skipped,
        'evaluation': run.evaluation.metrics,
        'prompt': first['prompt'],
        'sample': first['sample'],
        'texts': texts,
    }
    temporary = run.dir / '.summary.json'
    temporary.write_text(json.dumps(summary, indent=1))
    os.replace(temporary, run.dir / 'summary.json')
    picture = plot_run(run.dir)
    run.view.line(f'\nSample, after the prompt {first["prompt"]!r}:\n{first["sample"]}\n')
    told = (
        f'Finished: {p.tokens:,} tokens in {p.seconds:.0f} s. Validation loss {p.validation_loss:.4f}, the best was {p.best_loss:.4f}.\n'
        f'Curves:     {picture}\nCheckpoint: {run.checkpoints / "best"}\n'
        f"Generate:   lmp_generator {run.dir} --prompt 'Once upon a time'"
    )
    run.view.line(told)
    (run.dir / 'summary.txt').write_text(
        f'{run.plan.name}: {model.name}, seed {run.seed}\n{told}\n', encoding='utf-8'
    )
    return summary
