"""Weights of Llama's family: the same logits as transformers computes, and what is refused."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmplay.base.runner_list import find_runner
from lmplay.errors import CheckpointError
from lmplay.tokenizers import BPETokenizer
from lmplay.train.__main__ import main

FILE = 'model.safetensors'
SHAPE = dict(num_blocks=2, embed_dim=48, num_heads=6, num_kv_heads=2, ff_dim=80, max_len=64)
PLAIN = SHAPE | dict(vocab_size=320, norm_eps=1e-6, tokenizer='bytes')
UP = 'model.layers.1.mlp.up_proj.weight'


def write_llama(folder, **changed):
    """A small random Llama, as transformers itself writes it; the model."""
    import transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, max_position_embeddings=64)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, vocab_size=320)
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    saving = {k: changed.pop(k) for k in ('max_shard_size',) if k in changed}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | heads | ids | changed))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)  # far from its initialisation: every weight matters
    model.save_pretrained(folder, **saving)
    return model.eval()


def make(**changed):
    return find_runner('modern').function(**PLAIN | changed).build()


def tokens(T=64):
    return torch.randint(0, 256, (2, T), generator=torch.Generator().manual_seed(1))


CASES = {
    'plain': ({}, {}),
    'tied': (dict(tie_word_embeddings=True), dict(tied_head=True)),
    'ungrouped': (dict(num_key_value_heads=6), dict(num_kv_heads=6)),
    'one key head': (dict(num_key_value_heads=1), dict(num_kv_heads=1)),
    'theta': (
        dict(rope_parameters={'rope_type': 'default', 'rope_theta': 100000.0}),
        dict(rope_theta=100000.0),
    ),
    'epsilon': (dict(rms_norm_eps=0.01), dict(norm_eps=0.01)),
}


@pytest.mark.parametrize('case', CASES)
def test_logits_equal_those_of_transformers(case, tmp_path):
    """Up to the full length, whole and through both caches."""
    theirs, ours = CASES[case]
    original, model, x = write_llama(tmp_path, **theirs), make(**ours), tokens()
    lines = model.import_pretrained(str(tmp_path))
    assert lines[0] == f'weights of {tmp_path}'
    model.eval()
    with torch.no_grad():
        expected = original(x).logits
        scale = expected.abs().clamp(min=1)
        assert ((model(x) - expected[..., :257]).abs() / scale[..., :257]).max() < 1e-5
        past, cache, at = None, [], 0
        for n in (40, 1, 1, 22):
            out = original(x[:, at : at + n], past_key_values=past, use_cache=True)
            logits, cache = model(x[:, at : at + n], cache=cache)
            past, at = out.past_key_values, at + n
            difference = (logits[:, 0] - out.logits[:, -1, :257]).abs() / scale[:, at - 1, :257]
            assert difference.max() < 1e-5


def test_sharded_files(tmp_path):
    write_llama(tmp_path / 'whole')
    write_llama(tmp_path / 'sharded', max_shard_size='40KB')
    assert not (tmp_path / 'sharded' / FILE).exists()
    a, b = make(), make()
    a.import_pretrained(str(tmp_path / 'whole'))
    b.import_pretrained(str(tmp_path / 'sharded'))
    assert all(v.equal(b.state_dict()[k]) for k, v in a.state_dict().items())
    next((tmp_path / 'sharded').glob('model-00002*')).unlink()
    with pytest.raises(CheckpointError, match="can't be read: 'model-00002-of.*' is missing"):
        make().import_pretrained(str(tmp_path / 'sharded'))
    (tmp_path / 'sharded' / 'model.safetensors.index.json').write_text('{"weight_map": {')
    with pytest.raises(CheckpointError, match='is not a JSON object'):
        make().import_pretrained(str(tmp_path / 'sharded'))


def test_half_precision_is_taken(tmp_path):
    write_llama(tmp_path).bfloat16().save_pretrained(tmp_path)
    model = make()
    model.import_pretrained(str(tmp_path))
    assert model.fc.weight.dtype is torch.float32


def edit_weights(folder, change):
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE, metadata={'format': 'pt'})


def edit_config(folder, **changed):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | changed))


def pickle_only(folder):
    torch.save(load_file(folder / FILE), folder / 'pytorch_model.bin')
    (folder / FILE).unlink()


DAMAGES = {
    'no config': (lambda f: (f / 'config.json').unlink(), 'it has no config.json'),
    'torn config': (lambda f: (f / 'config.json').write_text('{"model_type": "lla'), 'is not a JSON object'),
    'config a list': (lambda f: (f / 'config.json').write_text('[]'), 'it holds a list'),
    'config not text': (lambda f: (f / 'config.json').write_bytes(b'\xff\xfe'), 'is not a JSON object'),
    'another family': (lambda f: edit_config(f, model_type='qwen2'), 'of type qwen2; .* takes llama'),
    'no size': (lambda f: edit_config(f, hidden_size=None), 'hidden_size must be a whole number'),
    'a size in words': (lambda f: edit_config(f, vocab_size='320'), "vocab_size .*given: '320'"),
    'missing tensor': (lambda f: edit_weights(f, lambda w: w.pop(UP)), f"'{UP}' is missing"),
    'extra tensor': (
        lambda f: edit_weights(f, lambda w: w.update(extra=torch.ones(2))),
        "'extra' is not of this architecture",
    ),
    'another shape': (
        lambda f: edit_weights(f, lambda w: w.update({UP: torch.ones(81, 48)})),
        r'has shape \[81, 48\] instead of \[80, 48\]',
    ),
    'torn weights': (lambda f: os.truncate(f / FILE, 5000), "can't be read"),
    'no weights': (lambda f: (f / FILE).unlink(), "can't be read: it has no model.safetensors"),
    'pickle only': (pickle_only, 'only pytorch_model.bin, which can run code'),
    'quantized by config': (
        lambda f: edit_config(f, quantization_config={'quant_method': 'gptq'}),
        'are quantized',
    ),
    'quantized tensors': (
        lambda f: edit_weights(f, lambda w: w.update({UP: torch.ones(80, 48, dtype=torch.int8)})),
        "is quantized.*up_proj.weight' is torch.int8",
    ),
    'tied without the tie': (lambda f: edit_config(f, tie_word_embeddings=True), r'--tied-head true'),
    'attention_bias': (lambda f: edit_config(f, attention_bias=True), 'attention_bias is True'),
    'mlp_bias': (lambda f: edit_config(f, mlp_bias=True), 'mlp_bias is True'),
    'activation': (lambda f: edit_config(f, hidden_act='gelu'), "hidden_act is 'gelu'"),
    'rope_scaling': (
        lambda f: edit_config(f, rope_parameters=None, rope_scaling={'type': 'linear', 'factor': 2.0}),
        "rope_scaling is 'linear'",
    ),
    'rope of llama 3': (
        lambda f: edit_config(f, rope_parameters={'rope_type': 'llama3', 'rope_theta': 10000.0}),
        "rope_scaling is 'llama3'",
    ),
    'theta': (
        lambda f: edit_config(f, rope_parameters=None, rope_theta=500000.0),
        '--rope-theta 500000.0',
    ),
    'epsilon': (lambda f: edit_config(f, rms_norm_eps=1e-5), '--norm-eps 1e-05'),
    'heads': (lambda f: edit_config(f, num_key_value_heads=3), '--num-kv-heads 3'),
    'layers': (lambda f: edit_config(f, num_hidden_layers=3), '--num-blocks 3'),
    'head_dim': (lambda f: edit_config(f, head_dim=16), 'head_dim is 16, this model can only have 8'),
    'a torn tokenizer': (
        lambda f: (f / 'tokenizer.json').write_text('{'),
        "tokenizer beside .* can't be used",
    ),
    'a sentencepiece tokenizer': (
        lambda f: (f / 'tokenizer.model').write_bytes(b'x'),
        'has tokenizer.model and no tokenizer.json',
    ),
    'a tokenizer too large': (
        lambda f: BPETokenizer.train(['a bc def ghi jkl mno pqr stu vwx'] * 9, vocab_size=330).save(f),
        None,
    ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_what_does_not_fit_is_named_in_one_sentence(damage, tmp_path):
    change, message = DAMAGES[damage]
    write_llama(tmp_path)
    change(tmp_path)
    model = make(vocab_size=320)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if message is None:
        entries = BPETokenizer.load(tmp_path / 'tokenizer.json').n_vocab
        edit_config(tmp_path, vocab_size=entries - 1)
        edit_weights(
            tmp_path,
            lambda w: w.update(
                {k: w[k][: entries - 1].clone() for k in ('model.embed_tokens.weight', 'lm_head.weight')}
            ),
        )
        model = make(vocab_size=entries - 1)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        message = f"{entries} entries, more than the model's {entries - 1}"
    with pytest.raises(CheckpointError, match=message) as caught:
        model.import_pretrained(str(tmp_path))
    assert '\n' not in str(caught.value)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert model.tokenizer.name == 'bytes'


def test_a_head_that_contradicts_its_tie(tmp_path):
    write_llama(tmp_path, tie_word_embeddings=True)
    model = make(tied_head=True)
    embedding = load_file(tmp_path / FILE)['model.embed_tokens.weight']
    edit_weights(tmp_path, lambda w: w.update({'lm_head.weight': embedding.clone()}))
    model.import_pretrained(str(tmp_path))  # written twice, but the same
    edit_weights(tmp_path, lambda w: w.update({'lm_head.weight': embedding + 1}))
    with pytest.raises(CheckpointError, match="ties the output head.*'lm_head.weight' differs"):
        model.import_pretrained(str(tmp_path))


def test_normalised_queries_are_not_llamas(tmp_path):
    write_llama(tmp_path)
    with pytest.raises(CheckpointError, match='--qk-norm false'):
        make(qk_norm=True).import_pretrained(str(tmp_path))


@pytest.fixture(scope='module')
def trained_tokenizer():
    text = ['the quick brown fox jumps over the lazy dog, said the dog of the fox'] * 20
    return BPETokenizer.train(text, vocab_size=290)


def test_fine_tuning_with_its_own_tokenizer_is_one_command(tmp_path, tiny_plan, trained_tokenizer):
    """It trains, resumes, and can be started from again, all in the tokens of the weights."""
    write_llama(tmp_path / 'llama')
    trained_tokenizer.save(tmp_path / 'llama')
    flags = [f'--{k.replace("_", "-")}={v}' for k, v in PLAIN.items() if k != 'tokenizer']
    run, again = tmp_path / 'run', tmp_path / 'again'
    # a plan that trains a tokenizer of its own, which weights of elsewhere do not speak
    plan = tiny_plan(tokenizer={'type': 'bpe', 'vocab_size': 280, 'documents': 50})
    common = ['--exp', 'modern', *flags, '--device', 'cpu', '--quiet']
    common += ['--training-plan', str(plan)]
    first = [*common, '--initial-model', str(tmp_path / 'llama'), '--run-dir', str(run)]
    assert main(first) == 0
    state = json.loads((run / 'checkpoints/last/state.json').read_text())
    assert state['tokenizer']['fingerprint'] == trained_tokenizer.fingerprint
    assert main(first) == 0  # resumes at its end
    assert main([*common, '--initial-model', str(run), '--run-dir', str(again)]) == 0
    state = json.loads((again / 'checkpoints/last/state.json').read_text())
    assert state['tokenizer']['fingerprint'] == trained_tokenizer.fingerprint


def test_a_misfit_ends_the_command_with_2(tmp_path, tiny_plan, capsys):
    write_llama(tmp_path / 'llama')
    arguments = ['--exp', 'modern_test', '--initial-model', str(tmp_path / 'llama')]
    arguments += ['--training-plan', str(tiny_plan()), '--run-dir', str(tmp_path / 'run'), '--device', 'cpu']
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert '--embed-dim 48' in error and 'Traceback' not in error


def test_another_model_of_the_same_shape_brings_its_tokenizer(trained_tokenizer):
    source = make(tokenizer=trained_tokenizer)
    model = make()
    assert any('290 entries' in line for line in model.import_pretrained(source)) or trained_tokenizer.n_vocab
    assert model.tokenizer.fingerprint == trained_tokenizer.fingerprint
    assert not model.can_start_from(make(num_blocks=1))


@pytest.fixture(scope='module')
def smollm2():
    """The folder that LMPLAY_SMOLLM2 names."""
    folder = os.environ.get('LMPLAY_SMOLLM2')
    if not folder:
        pytest.skip('LMPLAY_SMOLLM2 names no folder with SmolLM2-135M')
    return folder


def test_smollm2_predicts_as_it_should(smollm2, shared_data):
    """2.110 nats per token, 0.745 bits per byte on the first 20 stories."""
    model = find_runner('smollm2_135m').function(max_len=2048).build().eval()
    model.import_pretrained(smollm2)
    lines = (shared_data / 'tinystories' / 'train_5428.jsonl').read_text().splitlines()[:20]
    nats = count = size = 0
    for text in (json.loads(line)['text'] for line in lines):
        x = torch.tensor([model.tokenizer.encode(text)])
        with torch.no_grad():
            logits = model(x)[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction='sum').item()
        count, size = count + x.shape[1] - 1, size + len(text.encode())
    assert nats / count == pytest.approx(2.110, abs=0.001)
    assert nats / size / torch.log(torch.tensor(2.0)).item() == pytest.approx(0.745, abs=0.001)


def test_smollm2_equals_transformers(smollm2):
    import transformers

    model = find_runner('smollm2_135m').function(max_len=512).build().eval()
    model.import_pretrained(smollm2)
    original = transformers.LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    x = torch.randint(0, 49152, (1, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original(x).logits
        assert ((model(x) - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-4
