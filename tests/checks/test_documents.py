"""document_mask: the documents of a packed sequence apart, or a sentence."""

import json

import pytest
import torch

from lmplay.checks import require_document_mask, smallest
from lmplay.compare.__main__ import main as compare
from lmplay.errors import ExperimentError
from lmplay.runs.recorder import read_metrics
from lmplay.train.__main__ import main
from lmplay.train.objective import Objective
from tests.helpers import tiny


@pytest.mark.parametrize('exp', ['gpt2ish', 'modern', 'some', 'unified'])
def test_models_on_our_attention_keep_them_apart(exp):
    model = smallest(exp).train()
    require_document_mask(model)
    assert model.training


def test_a_model_with_attention_of_its_own_is_refused():
    with pytest.raises(
        ExperimentError, match='gpt2_moe.* sees the other documents of a sequence all the same'
    ):
        require_document_mask(smallest('gpt2_moe'))


def test_a_leak_beside_attention_is_found():
    model = tiny()
    features = model.features
    model.features = lambda x, cache=None: features(x) + 1e-3 * torch.cumsum(model.tok_embed(x), 1)
    with pytest.raises(ExperimentError, match='other documents'):
        require_document_mask(model)


@pytest.mark.parametrize('backend', [None, 'eager'])
def test_losses_are_those_of_each_document_alone(backend):
    """With rotary positions, which tell distances alone; in training and in evaluation, compiled or not."""
    torch.manual_seed(0)
    model = smallest('modern').double().eval()
    objective, end = Objective(model, document_mask=True), model.tokenizer.eot_token
    if backend:
        objective.compile_pass(dynamic=False, backend=backend)
    for seed in range(3):  # other borders, for which nothing may be compiled again or remembered
        x = torch.randint(1, 200, (2, 13), generator=torch.Generator().manual_seed(seed))
        borders = [0, 3 + seed, 8, 13]
        x[:, borders[1:-1]] = end
        y, mask = x.roll(-1, 1), torch.ones_like(x, dtype=torch.bool)
        alone = torch.cat(
            [
                Objective(model).token_losses(x[:, a:b], y[:, a:b], mask[:, a:b])[0]
                for a, b in zip(borders, borders[1:])
            ],
            1,
        )
        torch.testing.assert_close(objective.token_losses(x, y, mask)[0], alone)
        trained = objective(x, y, mask, scored=1, tokens_share=1.0).loss
        torch.testing.assert_close(trained, alone.sum())


def test_a_run_with_it(tiny_plan, tmp_path, capsys):
    """It trains another model than without, records the setting, and is not resumed without."""
    plan = str(tiny_plan())
    flags = ['--exp', 'gpt2ish', '--training-plan', plan, '--device', 'cpu', '--quiet']
    flags += ['--num-blocks', '1', '--embed-dim', '16', '--num-heads', '2']
    losses = {}
    for mask in ('--document-mask', '--no-document-mask'):
        assert main([*flags, mask, '--run-dir', str(tmp_path / mask)]) == 0
        (*_, last) = (r for r in read_metrics(tmp_path / mask) if r['kind'] == 'validation')
        losses[mask] = last['loss']
    assert len(set(losses.values())) == 2
    settings = json.loads((tmp_path / '--document-mask' / 'settings.json').read_text())
    assert settings['stages'][0]['document_mask'] is True
    assert main([*flags, '--steps', '6', '--run-dir', str(tmp_path / '--document-mask')]) == 2
    said = capsys.readouterr().err
    assert 'the document mask changed: document_mask was True and is False' in said


def test_a_comparison_tells_before_its_baseline_trains(tiny_plan, tmp_path, capsys):
    experiments, out = ['gpt2ish', 'gpt2_moe_test'], ['--out', str(tmp_path / 'c')]
    flags = ['--plan', str(tiny_plan()), '--device', 'cpu', '--set', 'document_mask=true', *out]
    assert compare([*experiments, *flags]) == 2
    assert 'It reaches attention that is CausalSelfAttention' in capsys.readouterr().err
    assert not (tmp_path / 'c').exists()


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--packing', 'pad'], '"document_mask" needs "packing": "pack"'),
        (['--exp', 'gpt2_moe_test'], 'It reaches attention that is CausalSelfAttention of lmplay.modules'),
    ],
)
def test_where_it_cannot_be_had(tiny_plan, tmp_path, capsys, flags, message):
    plan = str(tiny_plan())
    flags = ['--exp', 'gpt2ish', *flags, '--training-plan', plan, '--device', 'cpu', '--document-mask']
    assert main([*flags, '--run-dir', str(tmp_path / 'run')]) == 2
    assert message in capsys.readouterr().err
