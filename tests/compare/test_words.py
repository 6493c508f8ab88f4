"""Findings in words."""

from lmplay.compare.judge import noise
from lmplay.compare.statistics import ALPHA
from lmplay.compare.words import early_warning, sentence, signed, title


def found(verdict, **more):
    result = {
        'verdict': verdict,
        'seeds': [0, 1, 2],
        'mean': -0.2,
        'sd': 0.1,
        'low': -0.3,
        'high': -0.1,
        'documents': (-0.25, -0.15),
        'seeds_needed': 4,
        'diverged': {'baseline': [], 'experiment': []},
    }
    entry = {'label': 'mine', 'comparison': result | more, 'unequal': {'tokens': 2.0, 'seconds': 3.0}}
    return sentence(entry, {'label': 'base'}, 'nats per token', 0.05)


def test_verdicts():
    assert found('better') == (
        'mine is better than base: its held-out loss is 0.2000 nats per token lower (95 % interval −0.3000 '
        'to −0.1000, 3 seeds). It has 2.00 times the tokens of base.'
    )
    assert 'higher (95 % interval +0.1000 to' in found('worse', mean=0.2, low=0.1, high=0.3)
    assert 'take about 4 seeds' in found('within noise', low=-0.5, high=0.1)
    assert 'more than 1,000 seeds' in found('within noise', low=-0.5, high=0.1, seeds_needed=None)
    assert '4 of 5 comparisons' in found('within noise', low=-0.5, high=0.1, seeds_needed=3)
    assert 'does not hold over the held-out documents' in found('within noise', documents=(-0.4, 0.0))
    assert 'identical' in found('within noise', mean=0.0, sd=0.0, low=0.0, high=0.0)


def test_one_seed():
    one = {'seeds': [7], 'sd': None, 'low': None, 'high': None}
    assert 'With seed 7, the model of mine is better on this text' in found('no verdict', **one)
    assert 'the two models are level' in found('no verdict', documents=(-0.3, 0.1), **one)
    assert 'interval' not in found('no verdict', documents=None, **one)


def test_what_diverged():
    lost = {'mean': None, 'diverged': {'baseline': [], 'experiment': [1, 2]}}
    assert found('diverged', **lost).startswith('mine diverged on seed 1, 2')
    lost = {'mean': None, 'diverged': {'baseline': [0], 'experiment': []}}
    assert 'the held-out loss of base is not finite on seed 0' in found('no verdict', **lost)
    assert 'no finished seed in common' in found('no verdict', mean=None, seeds=[])


def test_early_warnings(trained, baseline, wide):
    measured = noise('gpt2ish', baseline, 'loss')

    def warn(label, members, seeds, noise):
        return early_warning(label, members, baseline[:seeds], noise, 'loss', alpha=ALPHA)

    assert '3 seeds can resolve about' in warn('wide', wide[:1], 3, measured)
    assert 'Warning' in warn('same', [trained('same', 'same', 0)], 3, measured)
    assert warn('wide', wide[:1], 1, noise('gpt2ish', baseline[:1], 'loss')) is None


def test_titles_read_forwards():
    assert title('base', ['mine', 'yours']) == 'mine, yours compared with base'


def test_small_differences_keep_their_digits():
    assert [signed(v) for v in (None, 0.0, 0.25, -0.25, 1.23e-5, -4.9e-5)] == [
        '–',
        '+0.0000',
        '+0.2500',
        '−0.2500',
        '+1.2e−05',
        '−4.9e−05',
    ]
