import pytest
import torch

from lmplay.errors import CheckpointError, PlanError
from lmplay.train.optimizer import MuonWithAdamW, clip_gradients, make_optimizer, restore_moments
from lmplay.train.plan import Stage
from tests.helpers import assert_equal, tiny

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
    """Two steps are one step, saving, restoring, and another step;
    settings are those of the stage at hand."""
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


def test_muon_without_a_matrix_to_train_is_refused():
    with pytest.raises(PlanError, match='weight decay above 0'):
        made('muon', tiny(), weight_decay=0)


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
