"""What test_parallel.py computes on several ranks, and on one to compare it with.

python -m tests.train.rank_worker FILE KIND [KIND]     as one of the ranks that the environment names
"""

import functools
import sys
from pathlib import Path

import numpy as np
import torch

from lmplay.base.base_model import LMBase
from lmplay.base.runner_list import find_runner, list_experiments
from lmplay.checks.experiment import smallest_parameters
from lmplay.data.mixture import Mixture
from lmplay.data.rows import PaddedRows
from lmplay.runs.recorder import read_metrics
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.ranks import ALONE, Ranks
from tests.helpers import Memory, make_trainer

MINI_BATCH = 4  # of all ranks together; the batch of 7 takes two passes, the last step one sequence
NO_CHANCE = ('attn_dropout', 'ff_dropout', 'embed_dropout', 'noise_std')
OF_STEP = 'gpt2_moe of a step'  # the load-balance loss no longer depends on how a step is cut


@functools.cache
def contenders() -> dict[str, tuple[str, dict]]:
    """Name -> (experiment, parameters): each registered experiment at its smallest size, equal ones once."""
    found, seen = {}, set()
    for entry in list_experiments():
        runner = find_runner(entry.name).function()
        parameters = smallest_parameters(entry.name)
        parameters |= {name: 0.0 for name in NO_CHANCE if name in runner.declared}
        given = runner.parameters | parameters | {'version': ''}
        key = runner.model_class.__name__, str(sorted(given.items(), key=str))
        if key not in seen:
            seen.add(key)
            found[entry.name] = (entry.name, parameters)
    return found | {OF_STEP: ('gpt2_moe', found['gpt2_moe'][1] | {'lb_scope': 'step', 'lb_coef': 0.5})}


def of_other_shapes() -> list[str]:
    """The contenders whose parameters have other shapes than those before; to FSDP the others are alike."""
    found: dict[str, str] = {}
    for name, (exp, parameters) in contenders().items():
        with torch.device('meta'):
            model = find_runner(exp).function(**parameters).build('meta')
        key = type(model).__name__ + str([(n, p.shape) for n, p in model.named_parameters()])
        found.setdefault(key, name)
    return [*found.values(), OF_STEP]


def data() -> Mixture:
    """Padded documents of very unequal length, whose first token is not scored."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 256, n).tolist() for n in rng.integers(2, 20, 24)]
    store = Memory(documents, prompts=[1] * len(documents))
    rows = PaddedRows(store, np.arange(24), length=20, tokenizer=BytesTokenizer(), include_prompts=False)
    return Mixture([rows], [1.0], seed=0, stage='s')


def result(name: str, folder: Path, ranks: Ranks = ALONE, kind: str = 'ddp', mini_batch=MINI_BATCH) -> dict:
    """Losses and weights of three steps, the last of a single sequence, in float64."""
    exp, parameters = contenders()[name]
    torch.manual_seed(0)
    model: LMBase = find_runner(exp).function(**parameters).build().double()
    torch.set_default_dtype(torch.float64)
    try:
        trainer = make_trainer(
            model,
            folder,
            data=data(),
            ranks=ranks,
            kind=kind,
            batch_size=7,
            mini_batch_size=max(1, mini_batch // ranks.size),
            steps=None,
            epochs=15 / 24,
            validation_interval=14,
            save_interval=10**6,
        )
        trainer.fit()
    finally:
        torch.set_default_dtype(torch.float32)
    tensors = [t.full_tensor() if hasattr(t, 'full_tensor') else t for t in model.state_dict().values()]
    records = read_metrics(folder) if ranks.first else []
    losses = [r['loss'] for r in records if r['kind'] != 'event']
    reported = {
        k: v for r in records for k, v in r.items() if k.startswith('model/') and r['kind'] == 'train'
    }
    weights = torch.cat([t.flatten().double() for t in tensors])
    return {'losses': losses, 'reported': reported, 'weights': weights, 'samples': trainer.state.samples}


def main() -> None:
    file, *kinds = sys.argv[1:]
    ranks, found = Ranks.of_environment(), {}
    with ranks.connected(torch.device('cpu')):
        for kind, _, names in (asked.partition('=') for asked in kinds):
            for name in names.split(',') if names else contenders():
                found[kind, name] = result(
                    name, Path(file).parent / f'{ranks.size}-{kind}-{name}', ranks, kind
                )
    if ranks.first:
        torch.save(found, file)


if __name__ == '__main__':
    main()
