import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.errors import UserError
from lmplay.generate.sampling import Sampling


def naive(logits, temperature, top_k, top_p):
    """Probability of each token, written down from the definitions: temperature, then the k best,
    then the nucleus."""
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    weights = [math.exp(x - top) for x in scaled]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None:
        total, reached, kept = sum(weights[i] for i in order), 0.0, []
        for i in order:
            kept.append(i)
            reached += weights[i] / total
            if reached >= top_p:
                break
        order = kept
    total = sum(weights[i] for i in order)
    return np.array([weights[i] / total if i in order else 0.0 for i in range(len(weights))])


def distribution(sampling, logits):
    weights, ids = sampling.candidates(torch.tensor([logits]))
    spread = torch.zeros(len(logits), dtype=torch.float64)
    spread[torch.arange(len(logits)) if ids is None else ids[0]] = weights[0] / weights.sum()
    return spread.numpy()


# Whole numbers, all different: no ties, and no sum of probabilities within rounding of a top_p with two
# digits.
distinct = st.lists(st.integers(-8, 8), min_size=1, max_size=12, unique=True).map(
    lambda x: [float(v) for v in x]
)


@given(
    distinct,
    st.sampled_from([0.5, 0.8, 1.0, 3.0]),
    st.none() | st.integers(1, 15),
    st.none() | st.sampled_from([0.05, 0.33, 0.77, 0.93]),
)
def test_candidates_are_those_of_the_definitions(logits, temperature, top_k, top_p):
    found = distribution(Sampling(temperature, top_k, top_p), logits)
    np.testing.assert_allclose(found, naive(logits, temperature, top_k, top_p), atol=1e-6)


@pytest.mark.parametrize('spread', [0.001, 1.0, 5.0])
@pytest.mark.parametrize('top_p', [0.1, 0.9, 0.999, 1.0])
def test_the_nucleus_of_a_large_vocabulary(spread, top_p):
    logits = (
        torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread
    ).float()
    found = distribution(Sampling(1.0, top_p=top_p), logits.tolist())
    kept = found > 0
    probs = logits.double().softmax(-1).numpy()
    assert probs[kept].sum() >= top_p - 1e-6
    assert probs[kept].sum() - probs[kept].min() < top_p
    assert probs[kept].min() >= probs[~kept].max(initial=0)


def test_rows_have_each_their_own_nucleus():
    logits = torch.tensor([[10.0, 0, 0, 0], [1.0, 1.1, 1.2, 1.3]])
    weights, _ = Sampling(1.0, top_p=0.9).candidates(logits)
    assert (weights > 0).sum(-1).tolist() == [1, 4]


@given(distinct, st.floats(0.01, 1), st.floats(0, 1, exclude_max=True))
def test_top_p_always_keeps_one_token(logits, top_p, uniform):
    sampling = Sampling(1.0, top_p=top_p)
    assert (distribution(sampling, logits) > 0).sum() >= 1
    token = sampling.pick(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64)).item()
    assert distribution(sampling, logits)[token] > 0


@settings(max_examples=30)
@given(distinct, st.none() | st.integers(1, 5))
def test_picks_follow_the_distribution(logits, top_k):
    """Evenly spaced numbers pick each token in proportion, to within one."""
    sampling, n = Sampling(1.0, top_k), 1000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    picked = sampling.pick(torch.tensor([logits]).expand(n, -1), uniform)
    counts = np.bincount(picked.numpy(), minlength=len(logits))
    assert np.abs(counts - n * distribution(sampling, logits)).max() <= 1.001


@given(distinct)
def test_temperature_zero_and_top_k_one_take_the_best(logits):
    best = int(np.argmax(logits))
    uniform = torch.tensor([0.99], dtype=torch.float64)
    assert Sampling(0).pick(torch.tensor([logits]), uniform).item() == best
    assert Sampling(5.0, 1).pick(torch.tensor([logits]), uniform).item() == best
    assert Sampling(1e-30).pick(torch.tensor([logits]), uniform).item() == best


@given(distinct, st.data())
def test_repetition_penalty_makes_seen_tokens_rarer(logits, data):
    seen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    penalised = (
        Sampling(repetition_penalty=1.5).penalise(torch.tensor([logits]), torch.tensor([seen]))[0].tolist()
    )
    for before, after, was in zip(logits, penalised, seen, strict=True):
        assert after == pytest.approx((before / 1.5 if before > 0 else before * 1.5) if was else before)
        assert after <= before


def test_the_extremes_of_the_random_number():
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])
    for uniform, token in ((0.0, 1), (1 - 2**-53, 2)):
        assert Sampling(1.0).pick(logits, torch.tensor([uniform], dtype=torch.float64)).item() == token


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_broken_logits_are_said(bad):
    for sampling in (Sampling(0), Sampling(1.0), Sampling(1.0, 2)):
        with pytest.raises(UserError, match='not finite'):
            sampling.pick(torch.tensor([[1.0, 2.0], [bad, 0.0]]), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    'setting, sentence',
    [
        (dict(temperature=-0.1), 'temperature must be 0'),
        (dict(temperature=math.nan), 'temperature must be 0'),
        (dict(top_k=0), 'top_k must be at least 1'),
        (dict(top_p=0.0), 'top_p must be above 0'),
        (dict(top_p=1.1), 'top_p must be above 0'),
        (dict(repetition_penalty=0), 'repetition_penalty must be above 0'),
    ],
)
def test_settings_out_of_range(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        Sampling(**setting)
