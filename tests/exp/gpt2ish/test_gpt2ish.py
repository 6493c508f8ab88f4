import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from lmplay.base.fusion import fused_head
from lmplay.base.runner_list import find_runner
from lmplay.checks import check_contract
from lmplay.errors import UserError
from lmplay.runs.load import load_model
from lmplay.train.__main__ import main
from lmplay.train.objective import Objective


def build(**parameters):
    torch.manual_seed(0)
    shape = dict(num_blocks=3, embed_dim=48, num_heads=4, max_len=24) | parameters
    return find_runner('gpt2ish').function(**shape).build()


@pytest.mark.parametrize(
    'version, blocks, width, heads, parameters',
    [
        ('gpt2ish', 6, 768, 12, 120_560_209),
        ('gpt2ish_med', 24, 1024, 16, None),
        ('gpt2ish_large', 36, 1280, 20, None),
        ('test_runner', None, 64, 2, None),
        ('s_gpt2ish', 18, 288, 6, None),
    ],
)
def test_versions(version, blocks, width, heads, parameters):
    model = find_runner(version).function().build('meta')
    h = model.hyperparameters
    assert (h['embed_dim'], h['num_heads']) == (width, heads)
    assert blocks is None or len(model.blocks) == h['num_blocks'] == blocks
    assert parameters is None or sum(p.numel() for p in model.parameters()) == parameters
    assert h['max_len'] == (128 if version == 'test_runner' else 1024)


def test_flops_per_token_match_the_arithmetic():
    model = find_runner('gpt2ish').function().build('meta')
    products = 6 * 12 * 768**2 + 768 * 50257
    assert 3 * model.flops_per_token(1024) == pytest.approx(6 * products + 12 * 6 * 768 * 1024)


def test_logits_equal_hugging_face_gpt2_with_the_same_weights():
    """The block is GPT-2's: with its weights mapped in, its epsilon and its GELU, the logits are its."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=50257, n_positions=24, n_embd=48, n_layer=3, n_head=4, layer_norm_epsilon=1e-5)
    ).eval()
    for p in theirs.parameters():  # fresh biases are zero and norms one, which would hide a mapping error
        nn.init.normal_(p, std=0.2)
    ours = build(norm_eps=1e-5, gelu='tanh').eval()
    t = theirs.transformer
    with torch.no_grad():
        ours.tok_embed.weight.copy_(t.wte.weight)
        ours.pos_embed.copy_(t.wpe.weight[None])
        for block, h in zip(ours.blocks, t.h):
            for linear, conv in (
                (block.attn.qkv, h.attn.c_attn),
                (block.attn.proj, h.attn.c_proj),
                (block.ff[0], h.mlp.c_fc),
                (block.ff[2], h.mlp.c_proj),
            ):
                linear.weight.copy_(conv.weight.T)
                linear.bias.copy_(conv.bias)
            for norm, ln in ((block.ln1, h.ln_1), (block.ln2, h.ln_2)):
                norm.load_state_dict(ln.state_dict())
        ours.ln.load_state_dict(t.ln_f.state_dict())
        ours.fc.weight.copy_(theirs.lm_head.weight)
        ours.fc.bias.zero_()
        x = torch.randint(0, 50257, (2, 24))
        a, b = ours(x), theirs(x).logits
        assert ((a - b).abs() / b.abs().clamp(min=1)).max() < 1e-5
        exact = build(norm_eps=1e-5, gelu='none').eval()
        exact.load_state_dict(ours.state_dict())
        assert (exact(x) - b).abs().max() > 1e-4  # the GELU's form matters, so it is explicit


@pytest.mark.parametrize('chunks', [[24], [1] * 24, [5, 1, 1, 7, 10], [23, 1]])
def test_cached_and_full_forward_agree_at_every_position(chunks):
    model = build().double().eval()
    x = torch.randint(0, 50257, (2, 24))
    with torch.no_grad():
        full = model(x)
        cache, at = [], 0
        for n in chunks:
            logits, cache = model(x[:, at : at + n], cache=cache)
            at += n
            assert logits.shape == (2, 1, 50257)
            torch.testing.assert_close(logits[:, 0], full[:, at - 1], atol=1e-10, rtol=0)


def test_no_position_sees_the_future():
    model = build().eval()
    embedded = model.tok_embed(torch.randint(0, 50257, (1, 24))).detach().requires_grad_()
    model.tok_embed.forward = lambda _: embedded
    logits = model(torch.zeros(1, 24, dtype=torch.int64))
    for t in (0, 7, 22):
        (grad,) = torch.autograd.grad(logits[0, t].sum(), embedded, retain_graph=True)
        assert grad[0, t + 1 :].abs().max() == 0
        assert (grad[0, : t + 1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize('dropout', ['attn_dropout', 'ff_dropout', 'embed_dropout'])
def test_each_dropout_is_really_applied_in_training_only(dropout):
    off = dict(attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0)
    model = build(**off | {dropout: 0.5})
    x = torch.randint(0, 50257, (1, 16))
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    model = build(**off)
    assert torch.equal(model(x), model(x))


@settings(max_examples=15)
@given(st.integers(1, 300), st.sampled_from(['gpt2ish', 'gpt2ish_med', 's_gpt2ish', 'test_runner']))
def test_every_version_builds_at_any_width(width, version):
    small = dict(embed_dim=width, num_blocks=1, max_len=8, tokenizer='bytes')
    model = find_runner(version).function(**small).build().eval()
    assert width % model.blocks[0].attn.num_heads == 0
    assert model(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 257)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match='multiple of num_heads; given: embed_dim 48, num_heads 5'):
        build(num_heads=5)


# ---- a head tied to the token embedding


def test_a_tied_head_is_the_embedding_and_costs_no_parameters():
    tied, untied = build(tie_head=True, tokenizer='bytes'), build(tokenizer='bytes')
    assert tied.fc.weight is tied.tok_embed.weight and tied.fc.bias is None
    saved = 257 * 48 + 257
    assert untied.total_parameters() - tied.total_parameters() == saved
    assert not [p for g in tied.param_groups(0.1) if g['weight_decay'] for p in g['params'] if len(p) == 257]
    assert fused_head(tied) is tied.fc


def test_a_tied_head_computes_what_an_untied_one_of_that_weight_does():
    """Logits alike; the gradient of the shared weight is the sum of both."""
    tied, untied = build(tie_head=True, tokenizer='bytes').eval(), build(tokenizer='bytes').eval()
    weights = tied.state_dict() | {'fc.bias': torch.zeros(257)}
    untied.load_state_dict(weights)
    x = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(0))
    losses = []
    for model in (tied, untied):
        part = Objective(model)(x, x.roll(-1), x >= 0, scored=x.numel(), tokens_share=1.0)
        part.objective.backward()
        losses.append(part.loss)
    torch.testing.assert_close(*losses)
    both = untied.tok_embed.weight.grad + untied.fc.weight.grad
    torch.testing.assert_close(tied.tok_embed.weight.grad, both)


def test_a_tied_head_trains_saves_and_stays_tied(tiny_plan, tmp_path):
    """It keeps the contract; its weight and moments are saved once."""
    run = tmp_path / 'run'
    shape = '--num-blocks 1 --embed-dim 16 --num-heads 2 --max-len 32 --tokenizer bytes --tie-head true'
    options = f'--exp gpt2ish --training-plan {tiny_plan()} --run-dir {run} --device cpu --quiet {shape}'
    assert main(options.split()) == 0
    model, _ = load_model(run)
    assert model.fc.weight is model.tok_embed.weight
    saved = load_file(run / 'checkpoints/last/model.safetensors')
    assert sum(t.numel() for t in saved.values()) == model.total_parameters()
    moments = torch.load(run / 'checkpoints/last/optimizer.pt', weights_only=True)['optimizer']['state']
    assert sum(m['exp_avg'].numel() for m in moments.values()) == model.total_parameters()
    assert not [f.problem for f in check_contract(model) if f.problem]
