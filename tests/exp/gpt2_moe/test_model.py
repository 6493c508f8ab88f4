"""The model behind the contract: shapes, routing, losses, cache, versions."""

import copy
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from lmplay.base.base_model import LMOutput, StepContext
from lmplay.base.runner_list import find_runner
from lmplay.errors import ExperimentError
from lmplay.exp.gpt2_moe.model import UpcycledLM, routed_layers

TINY = dict(
    num_blocks=2, embed_dim=32, num_heads=2, max_len=32, moe_layers='last 1', num_experts=4, tokenizer='bytes'
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UpcycledLM(**TINY)


NO_DROPOUT = dict(attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0)
LLAMA = dict(family='llama', **NO_DROPOUT)


@pytest.fixture(params=['gpt2', 'gpt_neox', 'llama'])
def either(request):
    torch.manual_seed(0)
    return UpcycledLM(**TINY | (LLAMA if request.param == 'llama' else dict(family=request.param)))


def tokens(B=2, T=20, seed=0):
    return torch.randint(0, 256, (B, T), generator=torch.Generator().manual_seed(seed))


# parameter counts of GPT-2 Small's shapes, to the last digit
COUNTS = {
    'gpt2_dense': 124_439_808,
    'gpt2_moe': 256_692_480,
    'gpt2_moe_nolb': 256_692_480,
    'gpt2_moe_top2': 256_692_480,
    'pythia_moe': 162_322_944 + 4 * 7 * 4_722_432 + 4 * 768 * 8,
    # SmolLM2-135M's: gated MLPs of three matrices, without biases
    'llama_dense': 134_515_008,
    'llama_moe': 134_515_008 + 4 * 7 * 3 * 576 * 1536 + 4 * 576 * 8,
    'llama_moe_nolb': 134_515_008 + 4 * 7 * 3 * 576 * 1536 + 4 * 576 * 8,
    'llama_moe_top2': 134_515_008 + 4 * 7 * 3 * 576 * 1536 + 4 * 576 * 8,
}


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_counts(name):
    model = find_runner(name).function().build('meta')
    assert model.total_parameters() == sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_active_parameters_and_flops():
    dense, moe, top2 = (
        find_runner(name).function().build('meta') for name in ('gpt2_dense', 'gpt2_moe', 'gpt2_moe_top2')
    )
    assert moe.active_parameters() == dense.active_parameters() + 4 * 768 * 8
    assert top2.active_parameters() == moe.active_parameters() + 4 * 4_722_432
    training = [round(3 * m.flops_per_token(1024) / 1e6) for m in (dense, moe, top2)]
    assert training == [854, 855, 968]
    counted = super(UpcycledLM, dense).flops_per_token(1024)  # torch's own count, which knows a dense model
    assert dense.flops_per_token(1024) == pytest.approx(counted, rel=0.001)


def test_active_parameters_and_flops_of_llama():
    names = ('llama_dense', 'llama_moe', 'llama_moe_top2')
    dense, moe, top2 = (find_runner(name).function().build('meta') for name in names)
    assert dense.active_parameters() == dense.total_parameters()
    assert moe.active_parameters() == dense.active_parameters() + 4 * 576 * 8
    assert top2.active_parameters() == moe.active_parameters() + 4 * 3 * 576 * 1536
    counted = super(UpcycledLM, dense).flops_per_token(1024)
    assert dense.flops_per_token(1024) == pytest.approx(counted, rel=0.001)
    assert moe.flops_per_token(1024) - dense.flops_per_token(1024) == 2 * 4 * 576 * 8
    assert top2.flops_per_token(1024) - moe.flops_per_token(1024) == 2 * 4 * 3 * 576 * 1536


@pytest.mark.parametrize(
    'choice, expected',
    [
        ('last 4', [8, 9, 10, 11]),
        ('all', list(range(12))),
        ('none', []),
        ('alternating', [1, 3, 5, 7, 9, 11]),
        ([7, 2, 7], [2, 7]),
    ],
)
def test_routed_layers(choice, expected):
    assert routed_layers(choice, 12) == expected


@pytest.mark.parametrize('choice', ['last 13', 'last 0', 'first 4', 'last', [12], [-1], [1.0], 4, 'ALL'])
def test_routed_layers_refuses(choice):
    with pytest.raises(ExperimentError, match='moe_layers must be'):
        routed_layers(choice, 12)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(num_experts=65),
        dict(num_experts=0),
        dict(top_k=5),
        dict(top_k=0),
        dict(embed_dim=33),
        dict(family='lama'),
        dict(vocab_size=100),
        dict(family='llama'),  # with dropout
        LLAMA | dict(embed_dropout=0.1),
        LLAMA | dict(num_kv_heads=3),
        dict(num_kv_heads=1),
        dict(rope_theta=1e5),
        dict(ff_dim=64),
    ],
)
def test_wrong_parameters(wrong):
    with pytest.raises(ExperimentError):
        UpcycledLM(**TINY | wrong)


def test_output(either):
    out = either(tokens())
    assert isinstance(out, LMOutput) and out.logits.shape == (2, 20, 257)
    assert out.losses['load_balance'][1] == 0.01 and out.losses['z_loss'][1] == 0.001
    assert out.metrics['expert_load'].shape == (1, 4) and out.metrics[
        'expert_load'
    ].sum().item() == pytest.approx(1)
    features = either.eval().features(tokens())
    torch.testing.assert_close(either.fc(features.features), either(tokens()).logits)
    assert all(layer.routing is None for layer in either.moe_layers.values())  # nothing is kept alive


def test_routing_tells_what_the_layers_do(either):
    either.eval()
    x = tokens()
    (layer,) = either.routing(x)
    assert (
        layer.name == 'layer 1'
        and layer.num_experts == 4
        and layer.expert_ids.shape == layer.weights.shape == (2, 20, 1)
    )
    metrics = either(x).metrics
    load = torch.bincount(layer.expert_ids.flatten(), minlength=4) / 40
    torch.testing.assert_close(load, metrics['expert_load'][0])
    torch.testing.assert_close(layer.entropy.mean(), metrics['router_entropy'][0])
    (experts,) = either.experts()
    shapes = [(4, 32, 128), (4, 128), (4, 128, 32), (4, 32)]
    if either.family.type == 'llama':
        shapes = [(4, 32, 128), (4, 32, 128), (4, 128, 32)]
    assert [tuple(w.shape) for w in experts.weights] == shapes


@pytest.mark.parametrize('top_k', [1, 2])
def test_metrics_are_those_of_the_study(top_k):
    """Entropy of the mean distribution, per layer and relative to log E; standard deviation of the shares."""
    torch.manual_seed(0)
    model = UpcycledLM(**TINY | dict(top_k=top_k, moe_layers='all')).eval()
    metrics = model(tokens()).metrics
    inputs = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, i=i: inputs.update({i: args[0].flatten(0, 1)}))
        for i, layer in model.moe_layers.items()
    ]
    model(tokens())
    for hook in hooks:
        hook.remove()
    for i, layer in model.moe_layers.items():
        probs = (inputs[i] @ layer.router.weight.t()).softmax(-1)
        mean = probs.mean(0)
        entropy = -(mean * torch.log(mean + 1e-10)).sum()
        chosen = probs.topk(top_k).indices
        shares = torch.tensor([(chosen == e).float().mean().item() for e in range(4)])
        assert metrics['distribution_entropy'][i].item() == pytest.approx(entropy.item(), abs=1e-5)
        normalised = entropy.item() / math.log(4)
        assert metrics['distribution_entropy_normalised'][i].item() == pytest.approx(normalised, abs=1e-5)
        assert metrics['load_std'][i].item() == pytest.approx(shares.std().item(), abs=1e-6)


def test_dense_has_neither_losses_nor_metrics():
    out = UpcycledLM(**TINY | dict(moe_layers='none')).features(tokens())
    assert out.losses == {} and out.metrics == {}


@pytest.mark.parametrize('top_k', [1, 2, 4])
def test_layer_by_definition(top_k):
    """Each token alone through the router and its experts, after the formulas."""
    torch.manual_seed(1)
    layer = UpcycledLM(**TINY | dict(top_k=top_k)).eval().moe_layers[1]
    x = torch.randn(2, 5, 32)
    y = layer(x)
    for b in range(2):
        for t in range(5):
            p = (layer.router.weight @ x[b, t]).softmax(-1)
            best = p.argsort(descending=True)[:top_k]
            weights = torch.ones(1) if top_k == 1 else p[best] / p[best].sum()
            wanted = sum(
                w
                * (
                    F.gelu(x[b, t] @ layer.w1[e] + layer.b1[e], approximate='tanh') @ layer.w2[e]
                    + layer.b2[e]
                )
                for e, w in zip(best, weights)
            )
            torch.testing.assert_close(y[b, t], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('top_k', [1, 2])
def test_gated_layer_by_definition(top_k):
    torch.manual_seed(1)
    layer = UpcycledLM(**TINY | LLAMA | dict(top_k=top_k, ff_dim=24)).eval().moe_layers[1]
    gate, up, down = layer.experts
    x = torch.randn(1, 5, 32)
    y = layer(x)
    for t in range(5):
        p = (layer.router.weight @ x[0, t]).softmax(-1)
        best = p.argsort(descending=True)[:top_k]
        weights = torch.ones(1) if top_k == 1 else p[best] / p[best].sum()
        wanted = sum(
            w * ((F.silu(x[0, t] @ gate[e]) * (x[0, t] @ up[e])) @ down[e]) for e, w in zip(best, weights)
        )
        torch.testing.assert_close(y[0, t], wanted, atol=1e-6, rtol=1e-5)


def test_router_learns_from_the_language_model_loss_alone(model):
    logits = model.eval()(tokens()).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    grad = model.moe_layers[1].router.weight.grad
    assert grad.isfinite().all() and grad.abs().sum() > 0


def test_noise_falls_linearly_and_follows_from_the_step(model):
    layer = model.moe_layers[1]
    assert float(layer.noise) == pytest.approx(0.1)
    expected = {0: 0.1, 5: 0.08, 10: 0.06, 20: 0.02, 24: 0.004, 25: 0.0, 99: 0.0}
    for step in (99, 5, 0, 24, 10, 25, 20):  # in any order: a function of the step alone
        model.before_step(StepContext('s', step, 100, 0))
        assert float(layer.noise) == pytest.approx(expected[step], abs=1e-7)
    assert 'noise' not in ' '.join(model.state_dict())
    still = UpcycledLM(**TINY | dict(noise_std=0.0))
    still.before_step(StepContext('s', 0, 100, 0))
    assert float(still.moe_layers[1].noise) == 0


def test_noise_only_in_training(model):
    x = torch.randn(1, 64, 32)
    layer = model.moe_layers[1]
    layer.dropout.p = 0.0

    def probabilities():
        layer(x)
        return layer.routing.probs_NE

    layer.eval()
    assert probabilities().equal(probabilities())
    layer.train()
    assert not probabilities().equal(probabilities())


def test_mask(either):
    """Padding changes no real token's logits, and counts in no loss and no metric."""
    either.eval()
    x, mask = tokens(), torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    out, other = either(x, mask=mask), either(torch.where(mask, x, 256), mask=mask)
    for name in out.losses:
        torch.testing.assert_close(out.losses[name][0], other.losses[name][0])
    for name in out.metrics:
        torch.testing.assert_close(out.metrics[name], other.metrics[name])
    torch.testing.assert_close(out.logits[mask], other.logits[mask])
    torch.testing.assert_close(out.logits[1, :13], either(x[1:, :13]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize('fault', ['left', 'hole'])
def test_padding_elsewhere_is_refused(either, fault):
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 0 if fault == 'left' else 7] = False
    with pytest.raises(ExperimentError, match='padding must stand at the end'):
        either(tokens(), mask=mask)


@pytest.mark.parametrize('side', ['left', 'right', 'hole', 'nowhere'])
def test_the_transformer_inside_honours_an_attention_mask(either, side):
    """As transformers' own attention does, from the same weights."""
    either.eval()
    x, mask = tokens(), torch.ones(2, 20, dtype=torch.long)
    mask[
        1, {'left': slice(0, 6), 'right': slice(13, 20), 'hole': slice(5, 8), 'nowhere': slice(0, 0)}[side]
    ] = 0
    theirs = copy.deepcopy(either.model)
    theirs.set_attn_implementation('eager')
    with torch.no_grad():
        ours, expected = (m(input_ids=x, attention_mask=mask).logits for m in (either.model, theirs))
        # whatever stands at the padding
        other = either.model(input_ids=torch.where(mask.bool(), x, 3), attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[real], other[real], atol=1e-6, rtol=1e-5)


def test_an_attention_mask_through_the_cache(either):
    from transformers import DynamicCache

    either.eval()
    x, mask = tokens(), torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    with torch.no_grad():
        whole = either.model(input_ids=x, attention_mask=mask).logits
        cache = DynamicCache(config=either.model.config)
        for part in (slice(0, 12), slice(12, 19), slice(19, 20)):
            seen = mask[:, : part.stop]
            logits = either.model(input_ids=x[:, part], attention_mask=seen, past_key_values=cache).logits
            torch.testing.assert_close(logits[:, -1], whole[:, part.stop - 1], atol=1e-5, rtol=1e-4)
        with pytest.raises(ExperimentError, match='must cover cached and new positions'):
            either.model(input_ids=x[:, :1], attention_mask=mask[:, :1], past_key_values=cache)


@pytest.mark.parametrize('cuts', [(1,) * 20, (20,), (7, 1, 12), (13, 7)])
def test_cache(either, cuts):
    either.eval()
    x = tokens()
    full, cache, start = either(x).logits, [], 0
    with torch.no_grad():
        for cut in cuts:
            logits, cache = either(x[:, start : start + cut], cache)
            start += cut
            assert logits.shape == (2, 1, 257)
            torch.testing.assert_close(logits[:, 0], full[:, start - 1], atol=1e-5, rtol=1e-5)


def test_padded_vocabulary():
    model = UpcycledLM(**TINY | dict(vocab_size=300))
    assert model.fc.weight.shape == (300, 32) and model(tokens()).logits.shape == (2, 20, 257)


@pytest.mark.parametrize('family', ['gpt2', 'gpt_neox', 'llama'])
def test_compiles_whole(family):
    """The whole model in one graph, forward and backward; router noise changes without a new one."""
    model = UpcycledLM(family=family, **TINY, attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model.features, fullgraph=True, backend='aot_eager')
    x, mask = tokens(), torch.ones(2, 20, dtype=torch.bool)
    for step in (99, 0, 10):
        model.before_step(StepContext('s', step, 100, 0))
        out = compiled(x, mask=mask)
        if step == 99:  # no noise: comparable
            plain = model.features(x, mask=mask)
            torch.testing.assert_close(out.features, plain.features)
            torch.testing.assert_close(out.losses['z_loss'][0], plain.losses['z_loss'][0])
            torch.testing.assert_close(out.metrics['expert_load'], plain.metrics['expert_load'])
        model.zero_grad()
        (model.fc(out.features).sum() + out.losses['load_balance'][0] + out.losses['z_loss'][0]).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1


def test_biases_of_experts_do_not_decay(model):
    decayed = {id(p) for p in model.param_groups(0.1)[0]['params']}
    layer = model.moe_layers[1]
    assert id(layer.w1) in decayed and id(layer.router.weight) in decayed
    assert not decayed & {id(layer.b1), id(layer.b2), id(model.trunk.wte.weight), id(model.trunk.wpe.weight)}


def test_versions():
    runners = {
        name: find_runner(name).function()
        for name in ('gpt2_dense', 'gpt2_moe', 'gpt2_moe_nolb', 'gpt2_moe_top2', 'gpt2_moe_test')
    }
    assert (
        runners['gpt2_moe_nolb'].training['on_collapse'] == 'stop'
        and runners['gpt2_moe'].training['on_collapse'] == 'warn'
    )
    assert (
        runners['gpt2_moe'].training['init_from'] == 'pretrained:gpt2'
        and 'init_from' not in runners['gpt2_moe_test'].training
    )
    p = {name: runner.parameters for name, runner in runners.items()}
    assert (
        p['gpt2_moe']['lb_coef'],
        p['gpt2_moe']['z_coef'],
        p['gpt2_moe']['noise_std'],
        p['gpt2_moe']['top_k'],
    ) == (0.01, 0.001, 0.1, 1)
    assert (p['gpt2_moe_nolb']['lb_coef'], p['gpt2_moe_nolb']['z_coef'], p['gpt2_moe_nolb']['noise_std']) == (
        0,
        0.001,
        0,
    )
    assert p['gpt2_moe_top2']['top_k'] == 2 and p['gpt2_dense']['moe_layers'] == 'none'


def test_a_copied_folder_is_an_experiment(tmp_path):
    """Under a new name, with another k, and no other edit."""
    import lmplay.exp.gpt2_moe as original

    folder = tmp_path / 'my_moe'
    shutil.copytree(original.__path__[0], folder, ignore=shutil.ignore_patterns('__pycache__'))
    versions = folder / 'versions.py'
    text = (
        versions.read_text()
        .replace("'gpt2_", "'my_")
        .replace("'pythia_moe'", "'my_pythia'")
        .replace("'llama_", "'my_llama_")
        .replace('top_k=2', 'top_k=3')
    )
    versions.write_text(text)
    runner = find_runner(f'{versions}:my_moe_top2').function(**TINY)
    copy = runner.build()
    assert copy.hyperparameters['top_k'] == 3 and type(copy) is not UpcycledLM
    assert copy(tokens()).logits.shape == (2, 20, 257)
    dense = find_runner('gpt2_dense').function(**TINY | dict(moe_layers='none')).build()
    assert any('relative error' in line for line in copy.import_pretrained(dense))
