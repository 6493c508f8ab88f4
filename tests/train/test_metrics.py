import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmplay.base.base_model import LMOutput
from lmplay.data.rows import Batch
from lmplay.runs.recorder import read_metrics
from lmplay.train.metrics import MODEL, MetricAccumulator
from lmplay.train.objective import MicroLoss

CPU = torch.device('cpu')
FINITE = st.floats(-100, 100, width=32)


def micro(loss=0.0, correct=0, **metrics):
    """What an objective gives of a micro-batch: `loss` is already a part of the step's mean."""
    loss = torch.tensor(loss)
    found = {name: torch.tensor(value) for name, value in metrics.items()}
    return MicroLoss(loss, loss, torch.tensor(correct), found)


def batch(tokens, scored):
    x = torch.zeros(1, tokens, dtype=torch.int64)
    return Batch(x, x, torch.tensor([tokens]), scored)


# of each micro-batch: summed cross-entropy, scored tokens, tokens that are not scored, right predictions,
# and a metric of the model's own
PARTS = st.tuples(
    st.floats(0, 50, width=32), st.integers(1, 30), st.integers(0, 9), st.integers(0, 30), FINITE
)


@given(st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=4))
def test_means_are_over_tokens_whatever_the_steps_and_their_parts(steps):
    metrics = MetricAccumulator(CPU)
    for parts in steps:
        scored = sum(n for _, n, *_ in parts)
        tokens = sum(n + more for _, n, more, *_ in parts)
        metrics.begin_step()
        for loss, n, more, correct, own in parts:
            metrics.add(micro(loss / scored, correct, own=own), (n + more) / tokens)
        metrics.end_step(batch(tokens, scored), torch.tensor(3.0), seconds=0.5, waited=0.1)
    record = metrics.pop()
    parts = [part for step in steps for part in step]
    scored, tokens = sum(n for _, n, *_ in parts), sum(n + more for _, n, more, *_ in parts)
    assert (record['steps'], record['scored'], record['tokens']) == (len(steps), scored, tokens)
    assert record['loss'] == pytest.approx(sum(loss for loss, *_ in parts) / scored, rel=1e-4, abs=1e-5)
    assert record['accuracy'] == pytest.approx(sum(c for *_, c, _ in parts) / scored)
    assert record['tokens_per_second'] == pytest.approx(tokens / (0.5 * len(steps)))
    assert record['data_wait'] == pytest.approx(0.2)
    means = []  # of a step: over its tokens; of several: over the steps
    for step in steps:
        whole = sum(n + more for _, n, more, *_ in step)
        means.append(sum(own * (n + more) / whole for _, n, more, _, own in step))
    assert record['model/own'] == pytest.approx(sum(means) / len(means), rel=1e-4, abs=1e-3)


def test_the_next_window_begins_empty():
    metrics = MetricAccumulator(CPU)
    for loss in (4.0, 2.0):
        metrics.begin_step()
        metrics.add(micro(loss, 1, own=loss), 1.0)
        metrics.end_step(batch(5, 5), torch.tensor(loss), seconds=1.0, waited=0.0)
        record = metrics.pop()
        assert (record['loss'], record['grad_norm'], record['steps'], record['model/own']) == (
            loss,
            loss,
            1,
            loss,
        )


def test_what_a_retried_step_had_measured_is_dropped():
    metrics = MetricAccumulator(CPU)
    for loss, correct in ((100.0, 4), (2.0, 1)):  # memory ran out after the first
        metrics.begin_step()
        metrics.add(micro(loss, correct, own=loss), 1.0)
    metrics.end_step(batch(5, 5), torch.tensor(1.0), seconds=1.0, waited=0.0)
    record = metrics.pop()
    assert (record['steps'], record['loss'], record['accuracy'], record['model/own']) == (1, 2.0, 0.2, 2.0)


def test_steps_without_a_finite_gradient_are_counted():
    metrics = MetricAccumulator(CPU)
    for norm in (1.0, float('nan'), float('inf'), 2.0):
        metrics.begin_step()
        metrics.add(micro(1.0), 1.0)
        metrics.end_step(batch(5, 5), torch.tensor(norm), seconds=1.0, waited=0.0)
    record = metrics.pop()
    assert (record['skipped'], record['grad_norm']) == (2, 2.0)


def test_the_mean_of_a_window_in_which_nothing_was_scored_is_none():
    metrics = MetricAccumulator(CPU)
    metrics.begin_step()
    metrics.add(micro(0.0), 1.0)
    metrics.end_step(batch(5, 0), torch.tensor(0.0), seconds=0.0, waited=0.0)
    record = metrics.pop()
    assert (record['loss'], record['accuracy'], record['tokens_per_second']) == (None, None, None)


def test_a_metric_is_averaged_over_the_steps_and_parts_that_report_it():
    metrics = MetricAccumulator(CPU)
    for step in range(10):
        metrics.begin_step()
        metrics.add(micro(1.0, **({'own': 8.0} if step == 3 else {})), 0.25)
        metrics.add(micro(1.0), 0.75)
        metrics.end_step(batch(5, 5), torch.tensor(1.0), seconds=1.0, waited=0.0)
    assert metrics.pop()['model/own'] == 8.0


NAN = float('nan')


@given(st.lists(st.tuples(FINITE, FINITE, st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_what_is_not_finite_is_left_out_and_counted(steps):
    metrics = MetricAccumulator(CPU)
    for loss, own, bad_loss, bad_own in steps:
        metrics.begin_step()
        load = torch.tensor([NAN if bad_own else own, 1.0])
        found = {'load': load}
        value = torch.tensor(NAN if bad_loss else loss)
        metrics.add(MicroLoss(value, value, torch.tensor(2), found), 1.0)
        metrics.end_step(batch(5, 4), value, seconds=1.0, waited=0.0)
    record = metrics.pop()
    losses = [loss for loss, _, bad, _ in steps if not bad]
    owns = [own for _, own, _, bad in steps if not bad]
    mean = sum(losses) / len(losses) if losses else NAN
    assert record['loss'] == pytest.approx(mean, rel=1e-4, abs=1e-4, nan_ok=True)
    assert record['accuracy'] == pytest.approx(0.5 if losses else NAN, nan_ok=True)
    mean = sum(owns) / len(owns) if owns else NAN
    assert record['model/load'] == pytest.approx([mean, 1.0], rel=1e-4, abs=1e-4, nan_ok=True)
    left_out = {'loss': len(steps) - len(losses), 'accuracy': len(steps) - len(losses)}
    left_out['model/load'] = len(steps) - len(owns)
    assert record.get('not_finite', {}) == {name: n for name, n in left_out.items() if n}
    assert record['skipped'] == left_out['loss']


def test_loss_is_of_real_tokens_and_loss_with_pad_of_the_padding_too():
    metrics = MetricAccumulator(CPU)
    for loss, padding in ((3.0, 1.0), (1.0, 0.5)):
        metrics.begin_step()
        part = torch.tensor(loss)
        metrics.add(MicroLoss(part, part, torch.tensor(1), {}, torch.tensor(padding)), 1.0)
        x = torch.zeros(1, 4, dtype=torch.int64)
        step = Batch(x, x, torch.tensor([4]), 8, padding=4)
        metrics.end_step(step, torch.tensor(1.0), seconds=1.0, waited=0.0)
    record = metrics.pop()
    assert record['loss'] == (3.0 + 1.0) * 8 / 8 and record['accuracy'] == 2 / 8
    assert record['loss_with_pad'] == (4.0 + 1.5) * 8 / 16


def test_losses_are_logged_unweighted_beside_metrics_of_any_shape():
    metrics = MetricAccumulator(CPU)
    output = LMOutput(losses={'z': (torch.tensor(4.0), 0.25)}, metrics={'load': torch.tensor([[0.5, 0.5]])})
    for _ in range(2):
        metrics.begin_step()
        metrics.add(MicroLoss(torch.zeros(()), torch.zeros(()), torch.tensor(0), output.reported()), 1.0)
        metrics.end_step(batch(5, 5), torch.tensor(0.0), seconds=1.0, waited=0.0)
    record = metrics.pop()
    assert record['model/z'] == 4.0 and record['model/load'] == [[0.5, 0.5]]


def test_what_a_model_reports_overwrites_nothing_that_the_trainer_measures(train):
    """`shouting` reports -7 under the trainer's own names, and computes what `mean` computes."""
    _, loud = train('loud', exp='shouting')
    _, plain = train('plain', exp='mean')
    measured = ('kind', 'stage', 'step', 'samples', 'tokens', 'loss', 'accuracy', 'lr', 'perplexity')
    records = [[r for r in read_metrics(run) if r['kind'] != 'event'] for run in (loud, plain)]
    for ours, theirs in zip(*records, strict=True):
        assert {k: ours.get(k) for k in measured} == {k: theirs.get(k) for k in measured}
        assert ours[f'{MODEL}loss'] == ours[f'{MODEL}step'] == ours[f'{MODEL}kind'] == -7.0
        assert not any(name.startswith(MODEL) for name in theirs)
    for csv in ('train_stats.csv', 'validate_stats.csv'):
        assert (loud / csv).read_text() == (plain / csv).read_text()
