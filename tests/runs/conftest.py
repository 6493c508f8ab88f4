import pytest
import torch

from lmplay.base.runner_list import find_runner
from lmplay.runs.checkpoint import save_checkpoint
from lmplay.runs.links import point
from lmplay.tokenizers import BytesTokenizer

SHAPE = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=16, tokenizer='bytes')


def tiny(**other):
    return find_runner('gpt2ish').function(**SHAPE | other).build()


def state_of(model):
    return {
        'exp': 'gpt2ish',
        'exp_file': None,
        'parameters': {k: v for k, v in SHAPE.items() if k != 'tokenizer'},
        'tokenizer': {'name': 'bytes', 'fingerprint': BytesTokenizer.fingerprint},
    }


@pytest.fixture
def saved(tmp_path):
    model = tiny()
    save_checkpoint(
        tmp_path / 'run/checkpoints/step-1', model, {'optimizer': {'x': torch.ones(2)}}, state_of(model)
    )
    point(tmp_path / 'run/checkpoints/last', tmp_path / 'run/checkpoints/step-1')
    return tmp_path / 'run', model
