import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmplay.errors import CheckpointError, PlanError
from lmplay.train.optimizer import (
    Muon,
    MuonWithAdamW,
    assignments,
    clip_gradients,
    learning_rate,
    make_optimizer,
    restore_moments,
    unfinished_warmup,
    warmup_steps,
)
from lmplay.train.plan import Stage
from tests.helpers import assert_equal, experiment, tiny

OPTIMIZERS = ['adamw', 'adam', 'adagrad', 'sgd', 'rmsprop', 'muon']


def made(name, model, **keys):
    return make_optimizer(model, Stage(dataset='embedded', optimizer=name, **{'lr': 0.01} | keys))


def step(model, optimizer):
    """One step on a gradient that is the same for models of equal weights."""
    for p in model.parameters():
        p.grad = p.detach() + 0.1
    optimizer.step()


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_moments_that_were_saved_are_the_moments_that_go_on(name):
    """Two steps are one step, saving, restoring, and another; settings are those of the stage at hand."""
    whole, first = tiny(), tiny()
    without_a_break, before = made(name, whole), made(name, first)
    for _ in range(2):
        step(whole, without_a_break)
    step(first, before)
    second = tiny()
    second.load_state_dict(first.state_dict())
    after = made(name, second, lr=0.02)
    restore_moments(after, before.state_dict())
    assert {g['lr'] for g in after.param_groups} == {0.02}
    for group in after.param_groups:
        group['lr'] = 0.01
    step(second, after)
    assert_equal(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize('saved', OPTIMIZERS)
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_moments_of_another_optimizer_are_refused(name, saved):
    model = tiny()
    optimizer = made(name, model)
    if {name, saved} <= {'adamw', 'adam'} or name == saved:
        restore_moments(optimizer, made(saved, model).state_dict())
        return
    with pytest.raises(CheckpointError, match='--ignore-optimizer'):
        restore_moments(optimizer, made(saved, model).state_dict())


def test_moments_of_other_parameters_are_refused():
    frozen = tiny()
    frozen.fc.weight.requires_grad_(False)
    with pytest.raises(CheckpointError, match='of another optimizer or other parameters'):
        restore_moments(made('adamw', tiny()), made('adamw', frozen).state_dict())


def names(model, groups):
    ids = {id(p) for group in groups for p in group['params']}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw():
    model = tiny()
    optimizer = made('muon', model)
    assert isinstance(optimizer, MuonWithAdamW)
    matrices, rest = (names(model, part.param_groups) for part in optimizer.parts)
    hidden = {n for n, p in model.named_parameters() if n.startswith('blocks.') and p.ndim == 2}
    assert matrices == hidden and rest == {n for n, _ in model.named_parameters()} - hidden


@pytest.mark.parametrize('decay', [0.0, 0.01])
def test_heads_and_tables_are_not_muons_whatever_they_are_called(decay):
    model = experiment('mean')  # its head is called `out`
    optimizer = made('muon', model, weight_decay=decay)
    assert names(model, optimizer.parts[0].param_groups) == {'mix.weight'}
    assert {g['weight_decay'] for g in optimizer.parts[0].param_groups} == {decay}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step(model, optimizer)
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_muon_takes_stacked_experts():
    model = tiny('gpt2_moe', moe_layers='all')
    matrices = names(model, made('muon', model).parts[0].param_groups)
    assert {'w1', 'w2'} <= {n.rsplit('.', 1)[1] for n in matrices}
    assert not {n for n in matrices if n.endswith(('b1', 'b2')) or 'wte' in n or 'wpe' in n}


def parameter(*shape, seed=0):
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def muon_steps(p, gradients):
    optimizer = Muon([{'params': [p]}], lr=0.01, weight_decay=0.1)
    for p.grad in gradients:
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize('shape', [(12, 5), (5, 12), (8, 8)])
def test_a_stack_moves_as_its_matrices_do_one_by_one_and_those_as_torchs_muon_moves_them(shape):
    stack, gradients = parameter(3, *shape), [torch.randn(3, *shape) for _ in range(3)]
    singles = [torch.nn.Parameter(m.clone()) for m in stack.detach()]
    theirs = [torch.nn.Parameter(m.clone()) for m in singles]
    moved = muon_steps(stack, gradients)
    for i, (mine, other) in enumerate(zip(singles, theirs)):
        mine = muon_steps(mine, [g[i] for g in gradients])
        oracle = torch.optim.Muon([other], lr=0.01, weight_decay=0.1, adjust_lr_fn='match_rms_adamw')
        for g in gradients:
            other.grad = g[i].clone()
            oracle.step()
        torch.testing.assert_close(mine, other.detach(), rtol=0, atol=2e-4)
        torch.testing.assert_close(moved[i], mine, rtol=0, atol=2e-4)


def test_muon_without_a_matrix_to_train_is_refused():
    model = experiment('mean')
    model.mix.weight.requires_grad_(False)
    with pytest.raises(PlanError, match='at least one trainable hidden matrix'):
        made('muon', model)


def test_what_went_where_is_told():
    lines = assignments(tiny(num_blocks=2), Stage(dataset='embedded', optimizer='muon', weight_decay=0.1))
    told = {line.split(':')[0]: line.split(': ')[1] for line in lines}
    assert told.keys() == {
        'muon, weight decay 0.1, matrix',
        'adamw, weight decay 0.1, head',
        'adamw, weight decay 0, table',
        'adamw, weight decay 0, embedding',
        'adamw, weight decay 0, vector',
    }
    assert told['adamw, weight decay 0.1, head'].startswith('fc.weight (')
    assert 'blocks.*.attn.qkv.weight' in told['muon, weight decay 0.1, matrix']
    assert {line.split(',')[0] for line in assignments(tiny(), Stage(dataset='embedded'))} == {'adamw'}


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(PlanError, match='No parameter of the model is trainable'):
        made('adamw', tiny().requires_grad_(False))


@pytest.mark.parametrize('largest', [None, 0.0, 0.5, 1e9])
def test_gradients_are_scaled_to_a_norm(largest):
    model = tiny()
    for p in model.parameters():
        p.grad = p.detach() + 0.1
    model.fc.bias.grad = None  # not every parameter need have one
    parameters = list(model.parameters())
    before = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    norm = clip_gradients(parameters, largest)
    after = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(norm, before.norm())
    scale = min(1.0, largest / before.norm().item()) if largest else 1.0
    torch.testing.assert_close(after, before * scale)


# ---- learning rates


@given(
    st.sampled_from(['constant', 'cosine', 'linear', 'wsd']),
    st.integers(2, 400),
    st.floats(0, 0.999),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_a_schedule_never_jumps_and_ends_where_it_should(schedule, total, warmup, in_steps, final):
    """Between two steps the rate changes by no more than the steepest part of warm-up or decay does."""
    steps = max(1, int(warmup * total)) if in_steps else warmup
    stage = Stage(dataset='embedded', lr=1.0, schedule=schedule, warmup=steps, final_lr=final)
    warm = warmup_steps(stage, total)
    if warm >= total:
        assert unfinished_warmup(stage, total) or warm == 1
        return
    rates = [learning_rate(stage, step, total) for step in range(total + 1)]
    falls = total - warm if schedule != 'wsd' else max(1, min(0.2 * total, total - warm))
    slope = max(1 / max(1, warm), (math.pi / 2 if schedule == 'cosine' else 1) / falls)
    assert max(abs(b - a) for a, b in zip(rates, rates[1:])) <= slope + 1e-9
    assert min(rates) >= 0 and max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1.0 if schedule == 'constant' else final)
    assert unfinished_warmup(stage, total) is None


@pytest.mark.parametrize(
    'warmup, said', [(100, 'only to 0.005'), (50, 'until its last step'), (0.999, 'until')]
)
def test_a_warmup_that_never_ends_is_told(warmup, said):
    stage = Stage(dataset='embedded', name='s', lr=0.01, warmup=warmup)
    assert said in unfinished_warmup(stage, 50)
