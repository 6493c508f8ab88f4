import pytest
import torch

from lmplay.base.base_model import LMBase
from lmplay.errors import CheckpointError, ExperimentError
from lmplay.runs.checkpoint import save_checkpoint
from lmplay.runs.links import point
from lmplay.train.plan import parse_plan
from lmplay.train.resolve import Settings, resolve
from lmplay.train.warm_start import freeze_all_but_marked, starting_model, warm_start
from tests.helpers import assert_equal, experiment, tiny

SHAPE = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=24)


def save(folder, model, *, exp='gpt2ish', **parameters):
    """A checkpoint as a run writes it."""
    tokenizer = {'name': 'bytes', 'fingerprint': model.tokenizer.fingerprint}
    state = {'exp': exp, 'exp_file': None, 'parameters': SHAPE | parameters, 'tokenizer': tokenizer}
    save_checkpoint(folder, model, None, state)
    return folder


def stage(index=0, **keys):
    stages = {name: {'dataset': 'embedded', 'steps': 1} for name in 'ab'}
    stages['ab'[index]] |= keys
    plan = parse_plan({'stages': stages, 'tokenizer': 'bytes'})
    settings = Settings(exp='gpt2ish', model=SHAPE | {'tokenizer': 'bytes'})
    return resolve(plan, settings, None)[index]


def started(stage, previous=None, *, folder=None, seed=3):
    """(the model, what was said of it)"""
    told = []
    how = dict(device=torch.device('cpu'), seed=seed, checkpoints=folder, tell=told.append)
    return starting_model(stage, previous, **how), told


def other(**parameters):
    """A model with weights of its own."""
    torch.manual_seed(99)
    model = tiny(**parameters)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return model


# ---- a stage's first model


def test_fresh_weights_follow_from_the_seed():
    a, b, c = (started(stage(init_from='scratch'), seed=seed)[0] for seed in (3, 3, 4))
    assert_equal(a.state_dict(), b.state_dict())
    assert not torch.equal(a.fc.weight, c.fc.weight)


def test_a_first_stage_has_no_previous_one():
    model, told = started(stage())
    assert_equal(model.state_dict(), started(stage(init_from='scratch'))[0].state_dict())
    assert told == []


def test_a_stage_that_continues_gets_the_very_model():
    before = other()
    assert started(stage(1), before)[0] is before


def test_a_stage_with_parameters_of_its_own_gets_a_copy():
    before = other()
    model, _ = started(stage(1, model={'ff_dropout': 0.4}), before)
    assert model is not before and model.hyperparameters['ff_dropout'] == 0.4
    assert_equal(model.state_dict(), before.state_dict())


def test_scratch_forgets_the_stage_before():
    before = other()
    model, told = started(stage(1, init_from='scratch'), before)
    assert not torch.equal(model.fc.weight, before.fc.weight) and told == []


def test_the_end_of_an_earlier_stage_is_found_by_its_name(tmp_path):
    saved = other()
    save(tmp_path / 'step-1', saved)
    point(tmp_path / 'stage-a', tmp_path / 'step-1')
    model, told = started(stage(1, init_from='stage:a'), other(embed_dim=32), folder=tmp_path)
    assert_equal(model.state_dict(), saved.state_dict())
    assert told == [f'weights from {tmp_path / "stage-a"}']


# ---- sources of weights


def test_a_run_means_its_best_checkpoint(tmp_path):
    best, last = other(), tiny()
    folder = tmp_path / 'run' / 'checkpoints'
    for name, saved in (('best', best), ('last', last)):
        point(folder / name, save(folder / f'step-{name}', saved))
    for source, expected in ((tmp_path / 'run', best), (folder / 'best', best), (folder / 'last', last)):
        model = tiny()
        (line,) = warm_start(model, source)
        assert line.startswith('weights from ')
        assert_equal(model.state_dict(), expected.state_dict())


def test_another_experiment_is_imported_by_the_model_itself(tmp_path):
    """gpt2_moe upcycles what gpt2ish was trained to."""
    save(tmp_path / 'dense', other(gelu='tanh'), gelu='tanh')
    mixture = tiny('gpt2_moe', moe_layers='last 1', num_experts=2)
    lines = warm_start(mixture, tmp_path / 'dense')
    assert any('relative error' in line for line in lines)


def test_a_model_may_import_its_own_kind_in_another_shape(tmp_path):
    """Where weights do not fit as they are, a model that can import is asked; another is refused."""
    dense = tiny('gpt2_moe', moe_layers='none', num_experts=2)
    save(tmp_path / 'moe', dense, exp='gpt2_moe', moe_layers='none', num_experts=2)
    mixture = tiny('gpt2_moe', moe_layers='last 1', num_experts=2)
    assert any('relative error' in line for line in warm_start(mixture, tmp_path / 'moe'))
    save(tmp_path / 'small', other())
    with pytest.raises(CheckpointError, match='a different architecture'):
        warm_start(tiny(embed_dim=32), tmp_path / 'small')


@pytest.mark.parametrize('source', ['pretrained:gpt2', 'another model', 'a folder of Hugging Face'])
def test_a_model_that_imports_nothing_says_so(source, tmp_path):
    if source == 'another model':
        source = experiment('mean')
    elif source != 'pretrained:gpt2':
        (tmp_path / 'config.json').write_text('{}')
        source = tmp_path
    with pytest.raises(ExperimentError, match='its model defines no import_pretrained'):
        warm_start(tiny('unified'), source)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match='there is no such path'):
        warm_start(tiny(), tmp_path / 'nowhere')


# ---- --default-freeze


def test_only_what_is_marked_trains():
    model: LMBase = tiny()
    model.blocks[0].ff.freeze = False  # a module: all that is in it
    model.pos_embed.freeze = False
    model.fc.weight.freeze = True  # no mark that frees
    freeze_all_but_marked(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    inside = {f'blocks.0.ff.{name}' for name, _ in model.blocks[0].ff.named_parameters()}
    assert trained == {'pos_embed', *inside}
