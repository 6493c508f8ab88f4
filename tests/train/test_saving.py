import json

import torch

from lmplay.runs.checkpoint import load_optimizer, load_weights, read_state
from lmplay.train.optimizer import make_optimizer
from lmplay.train.state import TrainState
from tests.helpers import assert_equal, experiment, make_trainer


def trained(folder, **stage):
    """A trainer after its last step, with checkpoints of its own to come."""
    trainer = make_trainer(experiment('mean'), folder, **stage)
    trainer.fit()
    return trainer


def test_a_checkpoint_holds_all_that_resuming_needs(tmp_path):
    trainer = trained(tmp_path)
    trainer.checkpoints.save()
    last = tmp_path / 'checkpoints' / 'last'
    state = read_state(last)
    assert {k: state[k] for k in ('exp', 'stage', 'seed')} == {'exp': 'test', 'stage': 's', 'seed': 0}
    assert TrainState(**state['progress']) == trainer.state
    again = experiment('mean')
    load_weights(again, last)
    assert_equal(again.state_dict(), trainer.model.state_dict())
    saved = load_optimizer(last)
    fresh = make_optimizer(again, trainer.stage)
    fresh.load_state_dict(saved['optimizer'])
    assert_equal(fresh.state_dict()['state'], trainer.optimizer.state_dict()['state'])
    assert saved['scaler'] == {}


def test_logs_are_on_the_disk_as_far_as_the_checkpoint_says(tmp_path):
    trainer = trained(tmp_path)
    trainer.checkpoints.save()
    logs = json.loads((tmp_path / 'checkpoints/last/state.json').read_text())['logs']
    assert logs and all((tmp_path / name).stat().st_size == length > 0 for name, length in logs.items())


def names(folder):
    """Which checkpoint each link names."""
    return {f.name: f.readlink().name for f in (folder / 'checkpoints').iterdir() if f.is_symlink()}


def test_best_names_the_best_weights_and_last_the_newest(tmp_path):
    trainer = make_trainer(experiment('mean'), tmp_path)
    state, links = trainer.state, []
    for loss in (3.0, 2.0, 2.5):
        state.advance(4, 100, 1.0)
        state.record_validation(loss)
        trainer.checkpoints.save()
        links.append(names(tmp_path))
    first, second, third = ({f'step-0000000{i}'} for i in (1, 2, 3))
    assert [{link['best']} for link in links] == [first, second, second]
    assert [{link['last']} for link in links] == [first, second, third]


def test_a_checkpoint_may_be_given_a_name(tmp_path):
    trainer = make_trainer(experiment('mean'), tmp_path)
    trainer.state.advance(4, 100, 1.0)
    trainer.checkpoints.save(link='collapse-1')
    assert names(tmp_path) == {'collapse-1': 'step-00000001', 'last': 'step-00000001'}


def test_last_is_linked_last(tmp_path):
    """A link that can't be made leaves `last` where it was: what resuming trusts is whole."""
    trainer = make_trainer(experiment('mean'), tmp_path)
    trainer.checkpoints.save()
    (tmp_path / 'checkpoints' / 'best').mkdir()
    (tmp_path / 'checkpoints' / 'best' / 'in the way').touch()
    trainer.state.advance(4, 100, 1.0)
    trainer.state.record_validation(1.0)
    failed = False
    try:
        trainer.checkpoints.save()
    except OSError:
        failed = True
    assert failed and names(tmp_path)['last'] == 'step-00000000'


def test_weights_are_those_of_the_moment(tmp_path):
    trainer = make_trainer(experiment('mean'), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.checkpoints.save()
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.zero_()
    again = experiment('mean')
    load_weights(again, tmp_path / 'checkpoints' / 'last')
    assert_equal(again.state_dict(), before)
