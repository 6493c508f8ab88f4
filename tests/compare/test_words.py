"""Findings in words."""

from lmplay.compare.words import seeds_text, sentence, signed, title

NOBODY = {'baseline': [], 'experiment': []}


def found(verdict, **more):
    result = {
        'verdict': verdict,
        'seeds': [0, 1, 2],
        'mean': -0.2,
        'sd': 0.1,
        'low': -0.3,
        'high': -0.1,
        'documents': (-0.25, -0.15),
        'over_seeds': (-0.3, 0.1),
        'seeds_needed': 4,
        'seeds_range': [4, 30],
        'diverged': NOBODY,
        'stopped': NOBODY,
    }
    entry = {'label': 'mine', 'comparison': result | more, 'unequal': {'tokens': 2.0, 'seconds': 3.0}}
    return sentence(entry, {'label': 'base'}, 'nats per token', 0.05)


def test_verdicts():
    assert found('better') == (
        'mine is better than base on text like this held-out text: its loss is 0.2000 nats per token lower '
        '(95 % interval −0.3000 to −0.1000, 3 seeds). It has 2.00 times the tokens of base.'
    )
    assert 'higher (95 % interval +0.1000 to' in found('worse', mean=0.2, low=0.1, high=0.3)
    assert 'take about 4 (4 to 30) seeds' in found('within noise', low=-0.5, high=0.1)
    assert 'more than 1,000 seeds' in found('within noise', low=-0.5, high=0.1, seeds_needed=None)
    assert '4 of 5 comparisons' in found('within noise', low=-0.5, high=0.1, seeds_needed=3)
    assert 'use more held-out text' in found('within noise', over_seeds=(-0.3, -0.1))
    assert 'fewer than 10 documents' in found('no verdict', low=None, high=None, documents=None)
    assert 'identical' in found('within noise', mean=0.0, sd=0.0, low=0.0, high=0.0)


def test_one_seed():
    one = {'seeds': [7], 'sd': None, 'low': None, 'high': None}
    assert 'With seed 7, the model of mine is better on text like this' in found('no verdict', **one)
    assert 'the two models are level' in found('no verdict', documents=(-0.3, 0.1), **one)
    assert 'interval' not in found('no verdict', documents=None, **one)


def test_what_diverged_or_stopped():
    lost = {'mean': None, 'diverged': {'baseline': [], 'experiment': [1, 2]}}
    assert found('diverged', **lost).startswith('No verdict: mine diverged on seeds 1, 2')
    lost = {'mean': None, 'diverged': {'baseline': [0], 'experiment': []}}
    assert 'base diverged on seed 0, where' in found('no verdict', **lost)
    lost = {'mean': None, 'stopped': {'baseline': [], 'experiment': [2]}}
    assert found('no verdict', **lost) == 'No verdict: mine stopped early on seed 2.'
    assert 'no finished seed in common' in found('no verdict', mean=None, seeds=[])


def test_seeds_needed_are_a_range():
    def text(needed, low, high):
        return seeds_text({'seeds_needed': needed, 'seeds_range': [low, high]})

    assert text(12, 6, 40) == 'about 12 (6 to 40)' and text(12, 6, None) == 'about 12 (6 to over 1,000)'
    assert text(2, 2, 2) == 'about 2' and text(None, 700, None) == 'over 1,000 (at least 700)'


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
