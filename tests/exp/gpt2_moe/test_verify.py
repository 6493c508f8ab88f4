"""The ten checks, on a small GPT-2 made here, and on what must fail them."""

import json
import os
import platform
import re

import pytest
import torch
from safetensors.torch import save_file

from lmplay.base.runner_list import find_runner
from lmplay.exp.gpt2_moe.checks import Checks
from lmplay.exp.gpt2_moe.model import UpcycledLM
from lmplay.exp.gpt2_moe.report import tables
from lmplay.exp.gpt2_moe.verify import main, open_source, tiny


def results(model, dense):
    return {title: check() for title, check in Checks(model, dense).all()}


def passed(findings):
    return all(good for good, _ in findings)


def test_command_on_a_tiny_model(capsys):
    assert main(['--tiny']) == 0
    out = capsys.readouterr().out
    assert '10 of 10 checks passed' in out and '| Layer |' in out
    for title in (
        'Installation',
        'Warm-start parity',
        'Forward pass',
        'Auxiliary outputs',
        'Loss computation',
        'Router gradient',
        'Noisy routing separation',
        'Generation',
        'Attention masking',
        'Routing coverage',
    ):
        assert title in out


TABLES = [  # of the published verification, with a status for each layer
    ['Layer', 'Relative Error', 'Status'],
    ['Layer', 'Load Balance Loss', 'Z Loss', 'Status'],
    ['Layer', 'Gradient Norm', 'Status'],
    ['Layer', r'Mean \|noisy-clean\|', 'Status'],
]


def markdown_tables(text):
    """Header and rows of each table, cells split at bars that are not escaped; every row as wide as its
    header, as a renderer needs it."""
    found, rows = [], []
    for line in [*text.splitlines(), '']:
        if line.startswith('|'):
            rows.append([cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]])
        elif rows:
            assert all(set(cell) == {'-'} for cell in rows[1])
            assert {len(row) for row in rows} == {len(rows[0])}
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


def test_tables_are_those_of_the_published_verification(capsys):
    assert main(['--tiny']) == 0
    out = capsys.readouterr().out
    tables = markdown_tables(out)
    assert [table[0] for table in tables] == TABLES
    for table in tables:
        assert [row[0] for row in table[1:]] == ['2', '3'] and {row[-1] for row in table[1:]} == {'PASS'}
    assert f'PyTorch {torch.__version__}' in out and f'Python {platform.python_version()}' in out


def test_report_is_a_run_log(tmp_path, capsys):
    file = tmp_path / 'logs' / 'run-007-tiny.md'
    assert main(['--tiny', '--report', str(file)]) == 0
    text = file.read_text()
    assert [table[0] for table in markdown_tables(text)] == TABLES
    headings = ['Objective', 'Configuration', 'Environment', 'Results', 'Log Excerpt', 'Anomalies / Issues']
    for heading in [*headings, 'Conclusion']:
        assert f'\n## {heading}\n' in text
    assert '**Run ID:** run-007-tiny' in text and '**Tests passed:** 10' in text
    assert f'--tiny --report {file}' in text and '[Test 9] Attention masking...' in text
    for name in ('Hardware', 'Device', 'Runtime', 'Python', 'PyTorch', 'Transformers'):
        assert f'- **{name}:** ' in text
    assert main(['--tiny', '--report', str(tmp_path)]) == 2 and 'is a folder' in capsys.readouterr().err


def test_a_layer_that_fails_has_its_status(made):
    model, dense = made
    with torch.no_grad():
        for expert in model.moe_layers[2].w2:
            expert.mul_(1.5)
    checks = Checks(model, dense)
    for _, check in checks.all():
        check()
    assert [row[-1] for row in markdown_tables(tables(checks))[0]] == ['Status', 'FAIL', 'PASS']


@pytest.mark.parametrize('loss, good', [(0.998, False), (0.9991, True), (8.0, True), (8.1, False)])
def test_bounds_of_the_load_balance_loss(made, monkeypatch, loss, good):
    model, dense = made
    monkeypatch.setattr('lmplay.exp.gpt2_moe.model.load_balance_loss', lambda *_: torch.tensor(loss))
    assert passed(Checks(model, dense).losses()) == good


def test_command_on_a_folder(tmp_path, capsys):
    import transformers

    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=8,
            n_embd=32,
            n_head=2,
            n_positions=64,
            vocab_size=257,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).save_pretrained(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert 'experts in layers [4, 5, 6, 7]' in capsys.readouterr().out


def test_command_on_a_llama(tmp_path, capsys):
    import transformers

    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=8, hidden_size=32, intermediate_size=80, max_position_embeddings=64)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=257, tie_word_embeddings=False)
    rope = dict(rope_parameters={'rope_type': 'default', 'rope_theta': 50000.0}, rms_norm_eps=1e-6)
    config = transformers.LlamaConfig(**sizes, **heads, **rope)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'experts in layers [4, 5, 6, 7]' in out and '10 of 10 checks passed' in out


def test_command_on_smollm2(capsys):
    """The study's bounds, on the real model where LMPLAY_SMOLLM2 names its folder."""
    folder = os.environ.get('LMPLAY_SMOLLM2')
    if not folder:
        pytest.skip('LMPLAY_SMOLLM2 names no folder with SmolLM2-135M')
    assert main([folder]) == 0
    out = capsys.readouterr().out
    assert '10 of 10 checks passed' in out and 'experts in layers [26, 27, 28, 29]' in out
    assert '208,851,264 parameters, expected 208,851,264' in out


@pytest.mark.parametrize(
    'exp, expected',
    [
        ('gpt2_moe_test', '9 of 10 checks passed, 1 did not apply'),
        ('gpt2ish', '10 of 10 checks passed'),
        ('llama_moe_test', '9 of 10'),
    ],
)
def test_command_on_a_checkpoint(exp, expected, tmp_path, capsys):
    """As the trainer writes it: a mixture is checked as it is, a dense model is upcycled first."""
    from lmplay.runs.checkpoint import save_checkpoint

    parameters = dict(num_blocks=4, embed_dim=32, num_heads=2, max_len=64)
    torch.manual_seed(0)
    model = find_runner(exp).function(**parameters, tokenizer='bytes').build()
    state = {
        'exp': exp,
        'exp_file': None,
        'parameters': parameters,
        'tokenizer': {'name': 'bytes', 'fingerprint': model.tokenizer.fingerprint},
    }
    save_checkpoint(tmp_path / 'checkpoints' / 'best', model, None, state)
    assert main([str(tmp_path)]) == 0
    assert expected in capsys.readouterr().out


def test_what_is_no_model(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    (tmp_path / 'config.json').write_text('{')
    assert main([str(tmp_path)]) == 2
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'lama'}))
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count('lmp_verify_moe: ') == 3


@pytest.fixture
def made():
    torch.manual_seed(0)
    model, dense, _ = tiny()
    return model, dense


def test_equal_experts_fail(made):
    model, dense = made
    with torch.no_grad():
        model.moe_layers[3].w1[2] = model.moe_layers[3].w1[5]
    assert not passed(results(model, dense)['Installation'])


def test_a_moved_expert_fails_parity(made):
    model, dense = made
    with torch.no_grad():
        for expert in model.moe_layers[2].w2:
            expert.mul_(1.5)
    found = results(model, dense)
    assert not passed(found['Warm-start parity']) and passed(found['Installation'])


def test_a_collapsed_router_fails_coverage(made):
    model, dense = made
    with torch.no_grad():
        model.moe_layers[2].router.weight[1:] = model.moe_layers[2].router.weight[0]
    found = results(model, dense)
    assert not passed(found['Routing coverage'])


def test_a_router_cut_off_fails(made):
    model, dense = made
    layer = model.moe_layers[3]
    route = layer.route
    layer.route = lambda x, noisy: route(x.detach(), noisy=noisy)._replace(weights_NK=torch.ones(len(x), 1))
    with pytest.raises((AttributeError, AssertionError)):  # no gradient at all reaches it
        assert passed(results(model, dense)['Router gradient (STE)'])


def test_a_model_that_sees_the_future_fails_masking(made):
    model, dense = made
    hook = model.trunk.register_forward_hook(
        lambda _, args, out: out.__class__(
            last_hidden_state=out.last_hidden_state + out.last_hidden_state.mean(1, keepdim=True)
        )
    )
    assert not passed(results(model, dense)['Attention masking'])
    hook.remove()


def test_a_trained_mixture_has_no_parity_to_check():
    model = UpcycledLM(
        num_blocks=2, embed_dim=32, num_heads=2, max_len=64, moe_layers='last 1', tokenizer='bytes'
    )
    found = results(model, None)
    assert found['Warm-start parity'] is None and all(passed(f) for f in found.values() if f is not None)


@pytest.mark.parametrize(
    'name, content',
    [('state.json', ''), ('state.json', '{}'), ('model.safetensors', ''), ('model.safetensors', 'x' * 40)],
)
def test_damaged_checkpoints_are_one_sentence(tmp_path, capsys, name, content):
    parameters = dict(num_blocks=2, embed_dim=32, num_heads=2, max_len=64, moe_layers='last 1')
    model = UpcycledLM(**parameters, tokenizer='bytes')
    state = {'exp': 'gpt2_moe', 'exp_file': None, 'parameters': parameters, 'tokenizer': {'name': 'bytes'}}
    (tmp_path / 'state.json').write_text(json.dumps(state))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items() if k != 'model.lm_head.weight'},
        tmp_path / 'model.safetensors',
        metadata={'aliases': json.dumps({'model.lm_head.weight': 'model.transformer.wte.weight'})},
    )
    assert open_source(str(tmp_path))[1] is None  # whole, it opens
    (tmp_path / name).write_text(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'is damaged or of another model' in error and error.count('\n') == 1
