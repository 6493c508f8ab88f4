"""The end of a run: summary.json, a sample of generated text, the picture of its curves."""
import json
import os

from ..base.base_model import LMBase
from ..data.tokenizers import as_tokenizer
from ..generate.generator import generate
from ..stats.plot import plot_run


def finish(run, model: LMBase) -> dict:
    """Writes what remains of a finished run and tells its user where it is."""
    p = run.progress
    tokenizer = as_tokenizer(model.tokenizer)
    example = run.evaluation.example(tokenizer) if run.evaluation else {'prompt': ''}
    prompt = tokenizer.encode(example['prompt'])[-32:]
    sample = generate(model, [prompt], max_new_tokens=64, temperature=0.8, top_k=50, seed=run.seed, stop_token=tokenizer.eot_token)[0]
    text = tokenizer.decode(sample)
    summary = {'model': model.name, 'exp': run.exp, 'plan': run.plan.name, 'seed': run.seed, 'steps': p.total_step, 'samples': p.total_samples,
               'tokens': p.tokens, 'flops': p.flops, 'seconds': round(p.seconds, 1), 'train_loss': p.loss, 'validation_loss': p.validation_loss,
               'best_validation_loss': p.best_loss, 'skipped_steps': p.skipped, 'evaluation': run.evaluation.metrics if run.evaluation else None,
               'prompt': tokenizer.decode(prompt), 'sample': text}
    temporary = run.dir / '.summary.json'
    temporary.write_text(json.dumps(summary, indent=1))
    os.replace(temporary, run.dir / 'summary.json')
    picture = plot_run(run.dir)
    run.view.line(f'\nSample, after the prompt {tokenizer.decode(prompt)!r}:\n{text}\n')
    run.view.line(f'Finished: {p.tokens:,} tokens in {p.seconds:.0f} s. Validation loss {p.validation_loss:.4f}, the best was {p.best_loss:.4f}.\n'
                  f'Curves:     {picture}\nCheckpoint: {run.checkpoints / "best"}\n'
                  f"Generate:   lmp_generator {run.dir} --prompt 'Once upon a time'")
    return summary
