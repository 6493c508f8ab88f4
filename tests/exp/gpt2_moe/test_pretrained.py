"""Warm starts: from a folder in Hugging Face's format, from models trained here, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import find_runner
from lmplay.errors import CheckpointError
from lmplay.exp.gpt2_moe.model import UpcycledLM
from lmplay.exp.gpt2_moe.pretrained import TEXT, parity, upcycle
from lmplay.tokenizers import BPETokenizer

SHAPE = dict(num_blocks=4, embed_dim=32, num_heads=2, max_len=64)
TINY = dict(**SHAPE, moe_layers='last 2', num_experts=4, tokenizer='bytes')


LLAMA = dict(
    family='llama', num_kv_heads=1, ff_dim=80, norm_eps=1e-6, tied_head=True, rope_theta=10_000.0,
    attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0,
)  # fmt: skip


def make(**changed):
    torch.manual_seed(3)
    if changed.get('family') == 'llama':
        changed = LLAMA | changed
    return BasicModelRunner(UpcycledLM, **TINY | changed).build()


@pytest.fixture(scope='module', params=['gpt2', 'gpt_neox', 'llama'])
def folder(request, tmp_path_factory):
    """A small model of each family, as transformers itself writes it."""
    import transformers

    torch.manual_seed(0)
    common = dict(vocab_size=257, bos_token_id=None, eos_token_id=None)
    if request.param == 'llama':
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                num_hidden_layers=4,
                hidden_size=32,
                intermediate_size=80,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                **common,
            )
        )
    elif request.param == 'gpt2':
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=4, n_embd=32, n_head=2, n_positions=64, **common)
        )
    else:
        model = transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                num_hidden_layers=4,
                hidden_size=32,
                intermediate_size=128,
                num_attention_heads=2,
                max_position_embeddings=64,
                **common,
            )
        )
    path = tmp_path_factory.mktemp(request.param)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)  # far from its initialisation: every weight matters
    model.save_pretrained(path)
    return path, request.param, model.eval()


def tokens(T=40):
    return torch.randint(0, 256, (2, T), generator=torch.Generator().manual_seed(1))


def test_dense_from_a_folder_computes_the_same(folder):
    path, family, original = folder
    model = make(family=family, moe_layers='none').eval()
    lines = model.import_pretrained(str(path))
    assert str(path) in lines[0]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, original(tokens()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('top_k', [1, 2])
def test_upcycling_keeps_what_the_dense_model_computes(folder, top_k):
    path, family, original = folder
    model = make(family=family, top_k=top_k)
    lines = model.import_pretrained(path)
    layers, logits = parity(model, original)
    assert list(layers) == [2, 3] and all(0 < error < 0.02 for error in [*layers.values(), logits])
    assert sum('relative error' in line for line in lines) == 3 and model.training
    exact = make(family=family, top_k=top_k, perturbation=0.0)
    exact.import_pretrained(path)
    layers, logits = parity(exact, original)
    assert max([*layers.values(), logits]) < 1e-5


def test_a_router_does_not_read_what_all_inputs_share(tmp_path):
    """Inputs that are nearly the same for every token would otherwise send all to one expert."""
    import transformers

    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=4, hidden_size=32, intermediate_size=80, max_position_embeddings=64)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, vocab_size=257, tie_word_embeddings=True)
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    with torch.no_grad():
        dense.model.embed_tokens.weight.normal_(std=0.1).add_(torch.randn(32))
    dense.save_pretrained(tmp_path)
    model = make(family='llama')
    fresh = model.moe_layers[2].router.weight.detach().clone()
    model.import_pretrained(tmp_path)
    moved = model.moe_layers[2].router.weight - fresh
    assert torch.linalg.matrix_rank(moved, rtol=1e-4) == 1  # one direction is gone, nothing else
    x = torch.tensor([list(TEXT.encode())[:64]])
    load = model.eval()(x).metrics['expert_load'][0]
    with torch.no_grad():
        model.moe_layers[2].router.weight.copy_(fresh)
    assert load.max() < model(x).metrics['expert_load'][0].max()


def test_perturbation_is_as_said_and_always_the_same(folder):
    path, family, original = folder
    model, again, exact = (make(family=family, perturbation=p) for p in (0.1, 0.1, 0.0))
    for m in (model, again, exact):
        m.import_pretrained(path)
    layer, dense = model.moe_layers[3], exact.moe_layers[3]
    for own, other, plain in zip(layer.experts, again.moe_layers[3].experts, dense.experts):
        assert own.equal(other)
        relative = ((own - plain).std() / plain[0].std()).item()  # of each parameter by itself
        assert relative == pytest.approx(0.1, rel=0.3 if own.ndim == 2 else 0.05)
    assert len({e.detach().numpy().tobytes() for e in layer.w1}) == 4


def broken(folder, tmp_path, change):
    path, family, _ = folder
    copy = tmp_path / 'broken'
    shutil.copytree(path, copy)
    weights = load_file(copy / 'model.safetensors')
    change(weights)
    save_file(weights, copy / 'model.safetensors', metadata={'format': 'pt'})
    return copy, family


def test_a_missing_key_fails_by_name(folder, tmp_path):
    name = {
        'gpt2': 'transformer.h.1.mlp.c_fc.weight',
        'gpt_neox': 'gpt_neox.layers.1.mlp.dense_h_to_4h.weight',
        'llama': 'model.layers.1.mlp.up_proj.weight',
    }[folder[1]]
    copy, family = broken(folder, tmp_path, lambda w: w.pop(name))
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        make(family=family).import_pretrained(str(copy))


def test_an_unexpected_key_fails_by_name(folder, tmp_path):
    copy, family = broken(folder, tmp_path, lambda w: w.update(extra=torch.ones(2)))
    with pytest.raises(CheckpointError, match="'extra' is not of this architecture"):
        make(family=family).import_pretrained(str(copy))


def test_damaged_folders(folder, tmp_path):
    path, family, _ = folder
    with pytest.raises(CheckpointError, match='no config.json'):
        make(family=family).import_pretrained(str(tmp_path))
    shutil.copy(path / 'config.json', tmp_path)
    with pytest.raises(CheckpointError, match="can't be read"):
        make(family=family).import_pretrained(str(tmp_path))
    (tmp_path / 'model.safetensors').write_bytes(b'no weights')
    with pytest.raises(CheckpointError, match="can't be read"):
        make(family=family).import_pretrained(str(tmp_path))


def test_another_shape_is_refused_with_the_flag_that_helps(folder):
    path, family, _ = folder
    with pytest.raises(CheckpointError, match='--num-heads 2'):
        make(family=family, num_heads=4).import_pretrained(path)
    with pytest.raises(CheckpointError, match='--num-blocks 4.*--embed-dim 32'):
        make(family=family, num_blocks=3, embed_dim=64).import_pretrained(path)
    if family == 'llama':
        with pytest.raises(CheckpointError, match='--num-kv-heads 1.*--ff-dim 80'):
            make(family=family, num_kv_heads=2, ff_dim=128).import_pretrained(path)
        with pytest.raises(CheckpointError, match='--rope-theta 10000.0.*--norm-eps 1e-06'):
            make(family=family, rope_theta=5e5, norm_eps=0.01).import_pretrained(path)
        with pytest.raises(CheckpointError, match='--tied-head True'):
            make(family=family, tied_head=False).import_pretrained(path)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(quantization_config={'quant_method': 'gptq'}), 'are quantized'),
        (dict(attention_bias=True), 'bias'),
        (dict(mlp_bias=True), 'bias'),
        (dict(hidden_act='gelu'), 'hidden_act'),
        (dict(rope_parameters={'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 10000.0}), 'rope_'),
        (dict(head_dim=32), 'shape|head_dim'),
    ],
)
def test_what_this_llama_can_not_compute_is_refused(tmp_path, change, message):
    import transformers

    sizes = dict(num_hidden_layers=4, hidden_size=32, intermediate_size=80, max_position_embeddings=64)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, vocab_size=257, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path)
    make(family='llama').import_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message) as caught:
        make(family='llama').import_pretrained(tmp_path)
    assert '\n' not in str(caught.value)


def test_another_family_is_refused(folder):
    path, family, _ = folder
    other = {'gpt2': 'gpt_neox', 'gpt_neox': 'llama', 'llama': 'gpt2'}[family]
    with pytest.raises(CheckpointError, match=f'of type {family}; this experiment takes {other}'):
        make(family=other).import_pretrained(path)


def test_shorter_context_keeps_the_first_positions(folder):
    path, family, original = folder
    model = make(family=family, moe_layers='none', max_len=48).eval()
    model.import_pretrained(path)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, original(tokens()).logits, atol=1e-4, rtol=1e-4)


def test_longer_context_is_refused_where_positions_are_learned(folder):
    path, family, _ = folder
    if family == 'gpt2':
        with pytest.raises(CheckpointError, match='wpe'):
            make(max_len=128).import_pretrained(path)
    else:
        make(family=family, max_len=128).import_pretrained(path)  # rotary positions have no weights


def test_nothing_is_changed_by_a_refused_import(folder):
    path, family, _ = folder
    model = make(family=family, max_len=128, num_heads=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        model.import_pretrained(path)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def test_tokenizer_beside_the_weights(tmp_path):
    """It becomes the model's where it encodes otherwise; one larger than the embedding is refused."""
    import transformers

    transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            num_hidden_layers=4,
            hidden_size=32,
            intermediate_size=128,
            num_attention_heads=2,
            max_position_embeddings=64,
            vocab_size=304,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).save_pretrained(tmp_path)
    options = dict(family='gpt_neox', vocab_size=304)
    model = make(**options)
    assert (
        any('no tokenizer.json' in line for line in model.import_pretrained(tmp_path))
        and model.tokenizer.name == 'bytes'
    )
    tokenizer = BPETokenizer.train([TEXT], vocab_size=300)
    tokenizer.save(tmp_path)
    assert any('300 entries' in line for line in model.import_pretrained(tmp_path))
    assert model.tokenizer.fingerprint == tokenizer.fingerprint and model(tokens()).logits.shape == (
        2,
        40,
        300,
    )
    assert not any(
        'tokens are those' in line for line in model.import_pretrained(tmp_path)
    )  # it has that one already
    mixture = make(**options)
    assert any(
        '300 entries' in line
        for line in mixture.import_pretrained(make(**options, moe_layers='none', tokenizer=tokenizer))
    )
    assert mixture.tokenizer.fingerprint == tokenizer.fingerprint
    BPETokenizer.train([TEXT], vocab_size=310).save(tmp_path)
    with pytest.raises(CheckpointError, match='310 entries'):
        make(**options).import_pretrained(tmp_path)


def test_from_a_dense_model_trained_here(folder):
    path, family, original = folder
    dense = make(family=family, moe_layers='none')
    dense.import_pretrained(path)
    model = make(family=family)
    lines = model.import_pretrained(dense)
    assert dense.name in lines[0] and parity(model, original)[1] < 0.02


def test_a_mixture_of_the_same_shape_is_taken_over():
    first, second = make(), make()
    torch.nn.init.normal_(first.moe_layers[3].w1)
    second.import_pretrained(first)
    assert second.moe_layers[3].w1.equal(first.moe_layers[3].w1)
    assert make(top_k=2).import_pretrained(first)  # k is no part of the weights


def test_a_mixture_of_another_shape_is_refused():
    with pytest.raises(CheckpointError, match='is upcycled already'):
        make(num_experts=2).import_pretrained(make())
    with pytest.raises(CheckpointError, match='is upcycled already'):
        make(moe_layers='none').import_pretrained(make())


def test_from_gpt2ish():
    source = (
        find_runner('gpt2ish')
        .function(**SHAPE | dict(max_len=96), tokenizer='bytes', gelu='tanh')
        .build()
        .eval()
    )
    with torch.no_grad():
        for p in source.parameters():
            torch.nn.init.normal_(p, std=0.3)
        source.fc.weight.copy_(source.tok_embed.weight)  # what can't be carried, made equal
        source.fc.bias.zero_()
    model = make(moe_layers='none').eval()
    lines = model.import_pretrained(source)
    assert any('output head and its bias' in line for line in lines) and not any(
        'GELU' in line for line in lines
    )
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, source(tokens()), atol=1e-3, rtol=1e-3)
    assert any('upcycled layer' in line for line in make().import_pretrained(source))
    exact = find_runner('gpt2ish').function(**SHAPE, tokenizer='bytes').build()
    assert any('exact GELU' in line for line in make().import_pretrained(exact))


def test_from_other_models_is_refused():
    small = find_runner('gpt2ish').function(**SHAPE | dict(embed_dim=16), tokenizer='bytes').build()
    with pytest.raises(CheckpointError, match='has shape'):
        make().import_pretrained(small)
    short = find_runner('gpt2ish').function(**SHAPE | dict(max_len=32), tokenizer='bytes').build()
    with pytest.raises(CheckpointError, match='wpe'):
        make().import_pretrained(short)
    heads = find_runner('gpt2ish').function(**SHAPE | dict(num_heads=4), tokenizer='bytes').build()
    with pytest.raises(CheckpointError, match='heads'):
        make().import_pretrained(heads)
    words = find_runner('gpt2ish').function(**SHAPE).build()
    with pytest.raises(CheckpointError, match='wte.* has shape'):
        make().import_pretrained(words)
    with pytest.raises(CheckpointError, match='is missing'):
        make(family='gpt_neox').import_pretrained(
            find_runner('gpt2ish').function(**SHAPE, tokenizer='bytes').build()
        )


def test_no_network_and_no_cache(monkeypatch, tmp_path):
    """One sentence with both ways out."""
    import huggingface_hub as hub

    monkeypatch.setattr(hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(hub.constants, 'ENDPOINT', 'http://localhost:9')  # nothing listens there
    with pytest.raises(CheckpointError) as caught:
        make().import_pretrained('pretrained:nobody/no-such-model')
    message = str(caught.value)
    assert (
        'hf download nobody/no-such-model' in message and '--initial-model' in message and '\n' not in message
    )


def test_from_the_local_cache_of_the_hub(folder, tmp_path, monkeypatch):
    """Laid out as the hub's library lays it out; read without a network."""
    import huggingface_hub as hub

    path, family, original = folder
    repo = tmp_path / 'models--someone--small'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text('0' * 40)
    shutil.copytree(path, repo / 'snapshots' / ('0' * 40))
    monkeypatch.setattr(hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(hub.constants, 'ENDPOINT', 'http://localhost:9')
    real = hub.snapshot_download
    monkeypatch.setattr(
        hub, 'snapshot_download', lambda name, **options: real(name, cache_dir=tmp_path, **options)
    )
    model = make(family=family)
    assert model.import_pretrained('pretrained:someone/small')[0] == 'weights of someone/small'
    assert parity(model, original)[1] < 0.02


def test_upcycling_copies(folder):
    """Training the mixture must not reach into the dense model."""
    path, family, original = folder
    model = make(family=family)
    upcycle(model, original)
    with torch.no_grad():
        model.moe_layers[3].w1.add_(1)
    assert json.dumps(list(model.moe_layers)) == '[2, 3]' and parity(model, original)[0][3] > 0.02
