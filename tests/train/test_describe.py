"""What is told of a model before it trains."""

import json

import pytest
import torch

from lmplay.train.__main__ import main
from lmplay.train.cost import activation_bytes, training_memory
from lmplay.train.describe import describe
from tests.helpers import EXPERIMENTS, experiment, tiny


def kept(model, sequences, length):
    """Bytes that a real forward pass keeps for its backward pass, the model's own left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    x = torch.zeros(sequences, length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model.features(x)
    assert out.requires_grad  # alive, and what it keeps with it
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize('sequences, length', [(2, 16), (4, 24)])
def test_activations_are_about_those_that_a_pass_keeps(sequences, length):
    """Head and loss are one: their activations are never all there."""
    counted = activation_bytes(tiny().to('meta'), rows=sequences, length=length)
    assert counted == pytest.approx(
        kept(tiny(), sequences, length), rel=0.25
    )  # attention keeps less on a CPU


def test_a_forward_of_ones_own_keeps_its_logits_too():
    model = experiment('mean').to('meta')
    assert activation_bytes(model, rows=4, length=16) > 4 * 16 * 16 * 4  # more than its hidden values


def test_memory_to_train_is_weights_gradients_moments_and_activations():
    model = tiny()
    model.pos_embed.requires_grad_(False)
    memory = training_memory(model.to('meta'), rows=4, length=16, amp=False)
    every = sum(p.numel() for p in model.parameters())
    trained = every - model.pos_embed.numel()
    assert (memory['gradients'], memory['optimizer']) == (4 * trained, 8 * trained)
    assert memory['weights'] >= 4 * every
    half = training_memory(model, rows=4, length=16, amp=True)
    assert half == memory | {'activations': memory['activations'] // 2}


def test_figures_of_a_model():
    model = tiny().to('meta')
    figures = describe(model, rows=4, length=16, amp=False)
    assert (
        figures['total_parameters']
        == figures['active_parameters']
        == sum(p.numel() for p in model.parameters())
    )
    assert figures['training_flops_per_token'] == 3 * figures['forward_flops_per_token']
    assert (figures['tokenizer'], figures['vocabulary']) == ('bytes', 257)
    assert figures['hyperparameters']['embed_dim'] == 16
    memory = dict(figures['memory_bytes'])
    assert memory.pop('total') == sum(memory.values())


def test_a_file_of_ones_own_is_described(capsys):
    assert main(['--exp', f'{EXPERIMENTS}:mean', '--describe', '--json', '--set', 'embed_dim=8']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['name'] == 'mean' and figures['hyperparameters']['embed_dim'] == 8


def test_a_model_without_parameters_is_refused(capsys):
    assert main(['--exp', f'{EXPERIMENTS}:futile', '--describe']) == 2
    assert 'Futile has no parameters' in capsys.readouterr().err


@pytest.mark.parametrize('stage, shown', [({'steps': 6}, '24 x 32'), ({'steps': None, 'seconds': 3.0}, '~')])
def test_a_dry_run_says_how_long_it_will_be(train, capsys, stage, shown):
    code, run = train(exp='mean', stage=stage, flags=['--dry-run'])
    out = capsys.readouterr().out
    assert code == 0 and not run.exists()
    assert shown in out and 'Nothing was trained' in out
