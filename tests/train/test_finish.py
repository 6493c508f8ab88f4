"""What remains of a run that has ended."""

import pytest

from tests.helpers import progress, summary


@pytest.mark.pictures
def test_a_summary_says_how_it_went(train):
    _, run = train(exp='mean')
    found = summary(run)
    assert (found['exp'], found['model'], found['plan'], found['seed']) == ('mean', 'mean', 'plan', 0)
    assert (found['steps'], found['samples']) == (12, 48)
    assert found['tokens'] == progress(run)['tokens'] and found['flops'] == progress(run)['flops']
    assert found['evaluation']['loss'] == found['validation_loss'] >= found['best_validation_loss']
    assert found['prompt'] == found['texts'][0]['prompt']
    assert {t['domain'] for t in found['texts']} == {'a', 'b'}
    assert (run / 'curves.png').stat().st_size > 0


def test_where_it_is_is_told_and_kept(train, capsys):
    _, run = train(exp='mean', quiet=False)
    error, text = capsys.readouterr().err, (run / 'summary.txt').read_text()
    assert text.startswith('plan: mean, seed 0\nFinished: ')
    for line in text.splitlines()[1:]:
        assert line in error
    assert f"lmp_generator {run} --prompt 'Once upon a time'" in text
    assert 'Samples, each after the end of a held-out prompt:' in error


@pytest.mark.pictures
def test_a_picture_that_can_not_be_drawn_fails_no_run(train, tmp_path):
    (tmp_path / 'run' / 'curves.png').mkdir(parents=True)
    (tmp_path / 'run' / '.lock').touch()  # the directory is a run's
    code, run = train(exp='mean')
    assert code == 0 and 'Curves:     could not be drawn (' in (run / 'summary.txt').read_text()
    assert summary(run)['steps'] == 12


def test_a_model_that_can_not_speak_any_more_has_a_summary(train):
    """Its weights are not finite; the reason stands where its text would."""
    code, run = train(exp='diverging')
    found = summary(run)
    assert code == 0 and [t['sample'] for t in found['texts']] == [found['sample']] * 2
    assert found['sample'].startswith("(none: The model's logits are not finite")
    assert found['prompt']


@pytest.mark.parametrize('flags', [[], ['--seed', '7']])
def test_samples_follow_from_the_seed(train, flags):
    a, b = (summary(train(name, exp='mean', flags=flags)[1]) for name in 'ab')
    assert a['texts'] == b['texts']
