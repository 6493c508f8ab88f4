"""Several ranks compute what one process computes: the same batch, cut differently."""

import pytest
import torch

from tests.helpers import spawn
from tests.train import rank_worker

NAMES = tuple(rank_worker.contenders())
ON_FOUR = ('gpt2ish', 'some')  # of the others, two ranks say as much


@pytest.fixture(scope='module')
def computed(tmp_path_factory) -> dict:
    """(ranks, kind, experiment) -> what they computed."""
    folder, found = tmp_path_factory.mktemp('ranks'), {}
    shapes = rank_worker.of_other_shapes()
    asked = {
        2: ['ddp', f'fsdp={",".join(shapes)}', 'fsdp_all=some'],
        4: [f'ddp={",".join(ON_FOUR)}'],
    }
    running = {
        size: spawn(size, 'tests.train.rank_worker', str(folder / f'{size}.pt'), *kinds)
        for size, kinds in asked.items()
    }
    for size, processes in running.items():
        errors = [process.communicate(timeout=240)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * size, '\n'.join(errors)
        found |= {(size, *key): value for key, value in torch.load(folder / f'{size}.pt').items()}
    return found


@pytest.mark.parametrize('name', NAMES)
def test_any_number_of_ranks_computes_the_same(name, computed, tmp_path):
    alone = rank_worker.result(name, tmp_path)
    for (*how, other), ranks in computed.items():
        if other == name:
            assert ranks['samples'] == alone['samples'] == 15
            assert ranks['losses'] == pytest.approx(alone['losses'], abs=1e-9), how
            torch.testing.assert_close(ranks['weights'], alone['weights'], rtol=0, atol=1e-9)
            assert_close_reports(ranks['reported'], alone['reported'])


def assert_close_reports(ranks: dict, alone: dict) -> None:
    """What models report is logged as float32."""
    assert ranks.keys() == alone.keys()
    for metric, value in alone.items():
        ours, theirs = (torch.tensor(v, dtype=torch.float64) for v in (ranks[metric], value))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=metric)


def test_fractions_of_the_whole_step_do_not_depend_on_its_cut(computed, tmp_path):
    name = rank_worker.OF_STEP
    one, many = (rank_worker.result(name, tmp_path / str(n), mini_batch=n) for n in (7, 2))
    for other in (many, computed[2, 'ddp', name], computed[2, 'fsdp', name]):
        assert other['losses'] == pytest.approx(one['losses'], abs=1e-9)
        torch.testing.assert_close(other['weights'], one['weights'], rtol=0, atol=1e-9)
