"""How the processes of a run behave together: what they say, how they end, what they leave behind."""

import json
import signal

import pytest
import torch

from lmplay.errors import UserError
from lmplay.runs.load import load_model
from lmplay.train.ranks import ALONE, Ranks
from tests.helpers import (
    EXPERIMENTS,
    assert_equal,
    events,
    free_port,
    losses,
    progress,
    spawn,
    train_records,
    weights,
)

PLAN = {
    's': {'steps': 12, 'batch_size': 6, 'mini_batch_size': 2, 'save_interval': 12, 'validation_interval': 24}
}


# ---- one process


@pytest.mark.parametrize('size', [1, 2, 3, 4, 7])
@pytest.mark.parametrize('mini_batch', [1, 2, 5])
@pytest.mark.parametrize('sequences', [1, 2, 8, 19])
def test_shares_are_the_batch_cut_differently(size, mini_batch, sequences):
    ranks = [Ranks(rank, size) for rank in range(size)]
    shares = [rank.share(sequences, mini_batch) for rank in ranks]
    assert sorted(i for share in shares for i in share) == list(range(sequences))
    passes = ranks[0].passes(sequences, mini_batch)
    for n in range(passes):
        together = [i for share in shares for i in share[n * mini_batch : (n + 1) * mini_batch]]
        start = n * size * mini_batch
        assert sorted(together) == list(range(start, min(sequences, start + size * mini_batch)))
    assert all(len(share) <= passes * mini_batch for share in shares)


@pytest.mark.parametrize('size', [1, 2, 3])
def test_every_rank_makes_as_many_passes_and_counts_each_item_once(size):
    dealt = [list(Ranks(rank, size).dealt(range(7))) for rank in range(size)]
    assert len({len(hand) for hand in dealt}) == 1
    assert sorted(item for hand in dealt for item, own in hand if own) == list(range(7))


def test_one_process_tells_nobody_anything():
    assert ALONE.largest(1.0, 2) == [1.0, 2] and ALONE.gathered('x') == ['x'] and ALONE.device('cpu') == 'cpu'
    with ALONE.connected(torch.device('cpu')), ALONE.in_turn(), ALONE.joined():
        assert not torch.distributed.is_initialized()


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match='RANK and .* torchrun --nproc-per-node 2'):
        Ranks.of_environment()


@pytest.mark.parametrize(('name', 'value'), [('WORLD_SIZE', 'two'), ('WORLD_SIZE', '0'), ('RANK', '-1')])
def test_an_environment_without_numbers_is_refused(name, value, monkeypatch):
    own = {'WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': '0', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'}
    for key, content in (own | {name: value}).items():
        monkeypatch.setenv(key, content)
    with pytest.raises(UserError, match=f"^{name} in .* whole number.*given: '{value}'"):
        Ranks.of_environment()


# ---- several


def command(plan, folder, *flags) -> list[str]:
    own = ['--exp', f'{EXPERIMENTS}:mean', '--training-plan', plan, '--run-dir', folder, '--device', 'cpu']
    return [str(part) for part in ('lmplay.train', *own, *flags)]


def ended(processes) -> list[tuple[int, str]]:
    """(exit code, what it said) of each."""
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said)]


def test_a_run_is_killed_and_resumed_on_other_numbers_of_ranks(train, tiny_plan, tmp_path):
    """On two, sharded, one of which is killed; on three, one of which gets SIGTERM; on one, to the end."""
    _, alone = train('alone', exp='mean', stages=PLAN)
    plan, folder = tiny_plan(PLAN), tmp_path / 'run'

    killed = spawn(2, *command(plan, folder, '--parallel', 'fsdp'), only={1: {'TROUBLE': '5 SIGKILL'}})
    (code, said), (other, _) = ended(killed)
    assert (code, other) == (2, -signal.SIGKILL)
    assert said.count('lmp_trainer:') == 1 and 'Rank 0 of 2: another process of the run has ended' in said
    assert progress(folder)['step'] == 4 and 'Traceback' not in said
    load_model(folder, exp=f'{EXPERIMENTS}:mean')  # on one process, from the parts of two

    stopped = ended(spawn(3, *command(plan, folder), only={2: {'TROUBLE': '7 SIGTERM'}}))
    assert [code for code, _ in stopped] == [143] * 3
    assert progress(folder)['step'] == 8
    assert not any(text.strip() for _, text in stopped[1:]), stopped  # rank 0 alone talks

    assert train('run', exp='mean', stages=PLAN)[0] == 0
    assert [r['samples'] for r in train_records(folder)] == [r['samples'] for r in train_records(alone)]
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(folder)[name], weight, rtol=1e-3, atol=1e-5)
    changed = ' '.join(event['message'] for event in events(folder, 'options'))
    assert 'ranks was 2 and is 3' in changed and 'ranks was 3 and is 1' in changed


def test_an_error_on_one_rank_ends_all_and_is_told_once(tiny_plan, tmp_path):
    failing = spawn(
        2, *command(tiny_plan(PLAN), tmp_path / 'run', '--quiet'), only={1: {'TROUBLE': '2 error'}}
    )
    (code, said), (other, told) = ended(failing)
    assert (code, said.strip()) == (1, '')
    assert (other, told.strip()) == (
        2,
        "lmp_trainer: Rank 1 of 2: Can't read 'stories.jsonl': it was removed.",
    )


def test_a_rank_that_hangs_ends_the_run_within_the_configured_time(tiny_plan, tmp_path):
    flags = ('--rank-timeout', '8', '--quiet')
    waiting, hanging = spawn(
        2, *command(tiny_plan(PLAN), tmp_path / 'run', *flags), only={1: {'TROUBLE': '2 SIGSTOP'}}
    )
    try:
        [(code, said)] = ended([waiting])
    finally:
        hanging.kill()
        hanging.communicate()
    assert code == 2, said
    assert 'Rank 0 of 2: no answer from another process within 8 s (--rank-timeout)' in said


HALVED = {'s': PLAN['s'] | {'batch_size': 7, 'save_interval': 21}}  # shares of 4 and 3 sequences


def test_auto_halves_on_all_ranks_what_does_not_fit_on_one_and_dropout_repeats_itself(
    train, tiny_plan, tmp_path
):
    """On two ranks the same run twice: micro-batches found by halving; given, stopped half-way and resumed.

    Sharded, where it can't be halved, the rank that runs out of memory says what to set.
    """
    plan, auto, given = tiny_plan(HALVED), tmp_path / 'auto', tmp_path / 'given'

    def run(folder, mini_batch, *flags, **variables) -> tuple[dict, list[str]]:
        arguments = command(plan, folder, '--mini-batch-size', mini_batch, '--quiet', *flags)[1:]
        port = {'MASTER_PORT': free_port()}
        return port | variables, ['--exp', f'{EXPERIMENTS}:troubled', *arguments[2:]]

    runs = [
        run(auto, 'auto'),
        run(given, 1, TROUBLE='6 SIGTERM'),
        run(given, 1, TROUBLE=''),
        run(tmp_path / 'sharded', 'auto', '--parallel', 'fsdp'),
    ]
    narrow = {1: {'ROWS_THAT_FIT': '1'}}
    endings = ended(spawn(2, 'tests.train.several', str(tmp_path / 'codes'), json.dumps(runs), only=narrow))
    codes = [json.loads((tmp_path / f'codes{rank}').read_text()) for rank in (0, 1)]
    assert codes == [[0, 143, 0, 1], [0, 143, 0, 2]], endings
    assert progress(auto)['mini_batch_size'] == 1
    assert losses(auto) == losses(given) and len(train_records(auto)) == 12
    assert_equal(weights(auto), weights(given))
    _, alone = train('alone', stages=HALVED)
    assert losses(alone) != losses(auto)  # each rank draws numbers of its own
    assert [text.strip() for _, text in endings] == [
        '',
        'lmp_trainer: Rank 1 of 2: Out of memory at mini-batch size 4 x 32 tokens. Use --mini-batch-size 2, '
        'a shorter --row-length, or --amp.',
    ]
