import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F

from lmplay.base.base_model import LMBase, StepContext
from lmplay.base.runner_list import find_runner
from lmplay.errors import ExperimentError
from lmplay.exp.some.model import sinusoidal_positions


def build(name='some_test', device='cpu', **parameters):
    torch.manual_seed(0)
    return find_runner(name).function(**{'tokenizer': 'bytes'} | parameters).build(device)


def step(model, optimizer, *batches, at=0, stepped=True, masks=None):
    """One optimizer step over micro-batches, as the trainer takes it."""
    model.before_step(StepContext('s', at, 10, 0))
    optimizer.zero_grad()
    total = sum(len(b) for b in batches)
    for batch, mask in zip(batches, masks or [None] * len(batches)):
        logits = model(batch, mask=mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        (loss * len(batch) / total).backward()
    if stepped:
        optimizer.step()
    model.after_step(StepContext('s', at, 10, 0, stepped=stepped))


def keys_of(model):
    return torch.stack([layer.keys.vectors for layer in model.layers]).clone()


def test_parameter_counts_of_the_publication():
    some, baseline = (find_runner(name).function().build('meta') for name in ('some', 'some_baseline'))
    assert some.tokenizer.n_vocab == baseline.tokenizer.n_vocab == 8192
    trainable = sum(p.numel() for p in some.parameters() if p.requires_grad)
    assert trainable == 18_919_424 and some.total_parameters() == 1_631_629_312
    assert some.active_parameters() == 18_919_424 + 8 * 8 * 1_574_912
    assert (
        sum(p.numel() for p in baseline.parameters() if p.requires_grad)
        == baseline.total_parameters()
        == 33_615_872
    )
    saved = sum(t.numel() * t.element_size() for t in some.state_dict().values())
    assert saved < 80e6  # weights of a checkpoint; the optimizer adds twice the trained ones


def test_documented_defaults():
    assert (
        build('some', 'meta').hyperparameters.items()
        >= dict(
            max_len=512,
            num_blocks=8,
            num_heads=8,
            embed_dim=512,
            num_experts=128,
            d_ffn=1536,
            top_k=8,
            alpha=0.015,
            beta=0.001,
            delta=0.001,
            theta_percentile=0.05,
            warmup_steps=400,
            ema_decay=0.995,
            init='sparse',
            train_temperature=1.0,
            eval_temperature=0.5,
            decay_fix=False,
            include_padding=True,
            backbone_init='published',
        ).items()
    )
    assert build('some_baseline', 'meta').hyperparameters['d_ffn'] == 2048


@pytest.mark.parametrize('name', ['some_test', 'some_baseline'])
def test_generation_with_a_cache_equals_the_full_pass(name):
    small = dict(num_blocks=2, embed_dim=64, num_heads=2, max_len=64)
    model = build(name, **small).eval()
    x = torch.randint(0, 257, (3, 20))
    full = model(x)
    full = full if isinstance(full, torch.Tensor) else full.logits
    cache = []
    for start, end in ((0, 7), (7, 8), (8, 20)):
        logits, cache = model(x[:, start:end], cache)
        torch.testing.assert_close(logits[:, 0], full[:, end - 1], rtol=1e-4, atol=1e-5)


def test_post_norm_backbone_by_hand():
    model = build('some_baseline', num_blocks=1, embed_dim=16, num_heads=2, max_len=32)
    x = torch.randint(0, 257, (2, 9))
    block, D = model.blocks[0], 16
    h = model.tok_embed.weight[x] * 4 + sinusoidal_positions(32, D)[:9]
    q, k, v = (t.view(2, 9, 2, 8).transpose(1, 2) for t in block.attn.qkv(h).split(D, dim=2))
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(
        torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf
    )
    h = block.ln1(h + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 9, D)))
    h = block.ln2(h + block.ff[2](F.gelu(block.ff[0](h))))
    torch.testing.assert_close(model(x), h @ model.fc.weight.t() + model.fc.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['some', 'some_baseline'])
def test_the_published_initialisation_is_that_of_torchs_modules(name):
    """Equal in distribution: bounds and standard deviations of many draws."""
    D, options = 128, dict(num_experts=8, top_k=2) if name == 'some' else {}
    model = build(name, num_blocks=2, embed_dim=D, num_heads=2, max_len=32, **options)
    theirs = torch.nn.MultiheadAttention(D, 2, batch_first=True)
    pairs = [
        (model.tok_embed.weight, torch.nn.Embedding(257, D).weight),
        (model.fc.weight, theirs.out_proj.weight),
    ]
    for block in model.blocks:
        assert not block.attn.qkv.bias.any() and not block.attn.proj.bias.any()
        pairs.append((block.attn.qkv.weight, theirs.in_proj_weight))
        pairs.append((block.attn.proj.weight, theirs.out_proj.weight))
        if name == 'some':
            pairs.append((block.ff.query.weight, torch.nn.Linear(D, D).weight))
    for ours, expected in pairs:
        assert ours.std().item() == pytest.approx(expected.std().item(), rel=0.03)
        assert ours.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=0.25)


def test_the_scaled_initialisation_keeps_the_embedded_tokens_at_unit_variance():
    x = torch.arange(257)[None]
    embedded = [
        (m.embed(x, None) - m.positions[:257]).std().item()
        for m in (build(backbone_init=i, max_len=257) for i in ('published', 'scaled'))
    ]
    assert embedded[0] == pytest.approx(8, rel=0.05) and embedded[1] == pytest.approx(1, rel=0.05)
    with pytest.raises(ExperimentError, match="Unknown backbone_init 'scalled'.*Did you mean 'scaled'"):
        build(backbone_init='scalled')


def test_positions():
    positions = sinusoidal_positions(50, 10).double()
    for i in range(5):
        angle = torch.arange(50, dtype=torch.float64) / 10_000 ** (2 * i / 10)
        torch.testing.assert_close(positions[:, 2 * i], angle.sin(), rtol=0, atol=1e-5)
        torch.testing.assert_close(positions[:, 2 * i + 1], angle.cos(), rtol=0, atol=1e-5)


def test_keys_move_once_per_step_and_micro_batches_make_no_difference():
    whole = build().double()
    parts, start = copy.deepcopy(whole), keys_of(whole)
    x = torch.randint(0, 257, (6, 16))
    for model, batches in ((whole, [x]), (parts, [x[:1], x[1:3], x[3:]])):
        optimizer = torch.optim.AdamW(model.param_groups(0.1), lr=1e-2)
        for at in range(3):
            step(model, optimizer, *batches, at=at)
    assert not torch.allclose(keys_of(whole), start, atol=1e-3)
    torch.testing.assert_close(
        keys_of(whole), keys_of(parts), rtol=0, atol=1e-6
    )  # Adam's epsilon magnifies rounding
    assert all(layer.keys.updates == 3 for layer in whole.layers)


def test_skipped_steps_evaluation_and_stray_passes_move_nothing():
    model = build()
    optimizer = torch.optim.AdamW(model.param_groups(0.1), lr=1e-3)
    x, start = torch.randint(0, 257, (4, 16)), keys_of(model)
    for stepped in (False, torch.tensor(False)):  # a tensor where the device decides by itself
        step(model, optimizer, x, stepped=stepped)
    model.eval()
    with torch.no_grad():
        model(x)
    assert torch.equal(keys_of(model), start) and not model.layers[0].keys.usage.any()
    model.train()
    other = copy.deepcopy(model)
    model(torch.randint(0, 257, (4, 16)))  # outside a step, as a search for the largest micro-batch does
    for m in (model, other):
        step(m, torch.optim.SGD(m.param_groups(0), lr=1e-3), x)
    assert torch.equal(keys_of(model), keys_of(other))


def test_static_keys_never_move_and_each_ablation_moves_them_otherwise():
    moved, x = {}, torch.randint(0, 257, (4, 16))
    small = dict(num_blocks=2, embed_dim=64, num_heads=2, num_experts=16, top_k=4, max_len=64)
    for name in ('some', 'some_no_alpha', 'some_no_beta', 'some_static'):
        model = build(name, **small)
        start = keys_of(model)
        step(model, torch.optim.SGD(model.param_groups(0), lr=1e-3), x)
        moved[name] = keys_of(model) - start
    torch.testing.assert_close(moved['some_static'], torch.zeros_like(start), rtol=0, atol=1e-6)
    assert moved['some'].norm() > moved['some_no_alpha'].norm() > 1e-3
    assert not torch.allclose(moved['some'], moved['some_no_beta'], atol=1e-5)


def test_a_saved_model_goes_on_exactly():
    model = build(decay_fix=True, warmup_steps=2)
    optimizer = torch.optim.AdamW(model.param_groups(0.1), lr=1e-2)
    batches = torch.randint(0, 257, (6, 4, 16))
    for at in range(3):
        step(model, optimizer, batches[at], at=at)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = build(decay_fix=True, warmup_steps=2)
    again.load_state_dict(saved[0])
    resumed = torch.optim.AdamW(again.param_groups(0.1), lr=1e-2)
    resumed.load_state_dict(saved[1])
    for at in range(3, 6):
        step(model, optimizer, batches[at], at=at)
        step(again, resumed, batches[at], at=at)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert model.layers[0].keys.updates == 6


def test_the_later_rules_train_and_are_a_version():
    small = dict(num_blocks=1, embed_dim=32, max_len=32, num_experts=16, top_k=2, warmup_steps=0, delta=0.9)
    model = build('some_v7', **small, theta_percentile=0.5)
    given = dict(router='mlp', peer_inertia='max', key_norm='clamp', respawn_threshold=0.1)
    assert model.hyperparameters.items() >= given.items()
    optimizer, start = torch.optim.SGD(model.param_groups(0), lr=1e-3), keys_of(model)
    for at in range(3):
        step(model, optimizer, torch.randint(0, 257, (4, 16)), at=at)
    norms = keys_of(model).norm(dim=2)
    assert (norms >= 0.1).all() and (norms < 1.0001).all() and not torch.equal(keys_of(model), start)


def test_padding_changes_no_real_token_and_moves_no_key():
    model = build(include_padding=False).double()
    padded, start = torch.randint(0, 257, (2, 16)), copy.deepcopy(model.state_dict())
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, 9:] = False
    other = torch.where(mask, padded, (padded + 5) % 257)
    results = []
    for x in (padded, other):
        model.load_state_dict(start)
        model.before_step(StepContext('s', 0, 1, 0))
        logits = model(x, mask=mask).logits
        model.after_step(StepContext('s', 0, 1, 0))
        results.append((logits[mask], keys_of(model)))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_features_and_head_give_the_logits():
    for name in ('some_test', 'some_baseline'):
        model = build(name, num_blocks=2, embed_dim=64, num_heads=2)
        x = torch.randint(0, 257, (2, 8))
        features, output = model.features(x), model(x)
        features, output = getattr(features, 'features', features), getattr(output, 'logits', output)
        assert torch.equal(model.fc(features), output)


def test_metrics():
    model = build()
    output = model(torch.randint(0, 257, (4, 16)))
    model.after_step(StepContext('s', 0, 1, 0))
    metrics = model.features(torch.randint(0, 257, (4, 16))).metrics
    assert metrics['expert_load'].shape == (2, 16)
    torch.testing.assert_close(output.metrics['expert_load'].sum(1), torch.ones(2))
    assert 0 < metrics['gini_middle'] == metrics['some_gini'][1] < 1
    assert 2 < metrics['entropy_middle'] == metrics['some_entropy'][1] < 4  # 4 bits: 16 experts used alike
    assert not any(m.requires_grad for m in metrics.values())


def test_temperature_schedule_is_a_function_of_the_context():
    model = build(temperature_schedule='linear')
    for at in (5, 0, 9):
        model.before_step(StepContext('s', at, 10, 0))
        assert model.layers[1].temperature.item() == pytest.approx(1 - 0.5 * at / 10)
    constant = build()
    constant.before_step(StepContext('s', 5, 10, 0))
    assert constant.layers[0].temperature == 1
    with pytest.raises(ExperimentError, match="Unknown temperature_schedule 'cosine'"):
        build(temperature_schedule='cosine')


def test_everything_trained_decays():
    groups = build().param_groups(0.1)
    assert [g['weight_decay'] for g in groups] == [0.1]
    assert {id(p) for p in groups[0]['params']} == {
        id(p) for p in build().parameters() if p.requires_grad
    } or len(groups[0]['params']) == len(list(build().parameters()))


def test_flops():
    baseline = build('some_baseline', 'meta', tokenizer='gpt2_8192')
    assert baseline.flops_per_token(512) == LMBase.flops_per_token(baseline, 512)
    assert baseline.training_flops_per_token(512) == 3 * baseline.flops_per_token(512)
    some = build('some', 'meta', tokenizer='gpt2_8192')
    D, dense = 512, baseline.flops_per_token(512) - 8 * 2 * 2 * 512 * 2048  # without its MLPs
    assert some.flops_per_token(512) == dense + 8 * 2 * (D * D + D * 128 + 8 * 2 * D * 1536)
    deeper = build('some', 'meta', router='mlp', router_mlp_mult=2.0, tokenizer='gpt2_8192')
    assert deeper.flops_per_token(512) - some.flops_per_token(512) == 8 * 2 * 3 * D * D
    frozen = 8 * 2 * 8 * 2 * D * 1536  # no gradient of their own: twice the forward pass, not three times
    assert some.training_flops_per_token(512) == 3 * some.flops_per_token(512) - frozen


def test_experts_stay_out_of_memory_of_gradients():
    model = build()
    model(torch.randint(0, 257, (2, 8))).logits.sum().backward()
    assert all(layer.w1.grad is None and not layer.w1.requires_grad for layer in model.layers)
    assert not any(re.search(r'\.w[12]$', name) for name in model.state_dict())


def test_routing_is_that_of_the_forward_pass():
    model = build().eval()
    x = torch.randint(0, 257, (3, 10))
    load = model(x).metrics['expert_load']
    layers, experts = model.routing(x), model.experts()
    assert [layer.name for layer in layers] == ['layer 0', 'layer 1'] and len(experts) == 2
    for layer, expected, found, inner in zip(layers, load, experts, model.layers):
        assert layer.expert_ids.shape == layer.weights.shape == (3, 10, 4) and layer.entropy.shape == (3, 10)
        torch.testing.assert_close(
            torch.bincount(layer.expert_ids.flatten(), minlength=16) / (30 * 4), expected
        )
        torch.testing.assert_close(layer.weights.sum(2), torch.ones(3, 10))
        assert (layer.entropy > 0).all() and (layer.entropy <= torch.tensor(16.0).log()).all()
        assert found.weights == () and found.keys is inner.keys.vectors and found.usage is inner.keys.usage
