import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.errors import ExperimentError
from lmplay.exp.some.keys import Keys, entropy_bits, gini, query_sums

RULES = dict(
    alpha=0.015,
    beta=0.001,
    delta=0.001,
    theta_percentile=0.05,
    warmup_steps=400,
    ema_decay=0.995,
    decay_fix=False,
)


def literal_update(  # noqa: C901 the published code, line by line
    keys,
    usage,
    pull,
    updates,
    queries,
    choices,
    *,
    alpha,
    beta,
    delta,
    theta_percentile,
    warmup_steps,
    ema_decay,
    decay_fix,
    gates=None,
    peer_inertia='min',
    usage_by='assignments',
    key_norm='unit',
):
    """The rules as they are written down: token by token, pair by pair."""
    E = len(keys)
    counts = np.zeros(E)
    for t, chosen in enumerate(choices):
        for rank, i in enumerate(chosen):
            counts[i] += gates[t][rank] if usage_by == 'gate_mass' else 1
    usage = ema_decay * usage + (1 - ema_decay) * counts
    for rank in range(len(choices[0]) if len(choices) else 0):
        moved = keys.copy()
        for q, chosen in zip(queries, choices):
            i = chosen[rank]
            moved[i] += alpha / (1 + usage[i]) * (q - keys[i])
        keys = moved
    moved = keys.copy()
    for chosen in choices:
        for a in range(len(chosen)):
            for b in range(a + 1, len(chosen)):
                i, m = chosen[a], chosen[b]
                of_pair = max if peer_inertia == 'max' else min
                strength = beta / (1 + of_pair(usage[i], usage[m]))
                moved[i] += strength * (keys[m] - keys[i])
                moved[m] += strength * (keys[i] - keys[m])
    keys = moved
    if key_norm == 'clamp':
        keys = np.stack([key / max(1, np.linalg.norm(key)) for key in keys])
    if updates >= warmup_steps and (usage > 0).any():
        theta = np.quantile(usage[usage > 0], theta_percentile)
        for i in range(E):
            if usage[i] < theta:
                keys[i] *= 1 if key_norm == 'clamp' and decay_fix else 1 - delta
                pull[i] *= 1 - delta
            else:
                pull[i] = min(1, pull[i] / (1 - delta))
    else:
        pull = np.minimum(1, pull / (1 - delta))
    if key_norm == 'unit':
        keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return keys, usage, pull if decay_fix else np.ones(E)


@st.composite
def cases(draw):
    E = draw(st.integers(2, 7))
    rules = dict(
        alpha=draw(st.sampled_from([0.0, 0.015, 0.3])),
        beta=draw(st.sampled_from([0.0, 0.001, 0.2])),
        delta=draw(st.sampled_from([0.0, 0.001, 0.3])),
        theta_percentile=draw(st.floats(0, 1)),
        warmup_steps=draw(st.integers(0, 3)),
        ema_decay=draw(st.floats(0, 0.999)),
        decay_fix=draw(st.booleans()),
        peer_inertia=draw(st.sampled_from(['min', 'max'])),
        usage_by=draw(st.sampled_from(['assignments', 'gate_mass'])),
        key_norm=draw(st.sampled_from(['unit', 'clamp'])),
    )
    return dict(
        E=E,
        K=draw(st.integers(1, E)),
        D=draw(st.integers(2, 5)),
        steps=draw(st.lists(st.integers(0, 9), max_size=4)),
        seed=draw(st.integers(0, 10**6)),
        rules=rules,
    )


def random_step(generator, N, E, K, D):
    queries = torch.nn.functional.normalize(
        torch.randn(N, D, dtype=torch.float64, generator=generator), dim=1
    )
    choices = torch.rand(N, E, generator=generator).argsort(dim=1)[:, :K]
    return queries, choices


def make(E, D, K, **rules):
    return Keys(E, D, top_k=K, **RULES | rules).double()


@settings(deadline=None, max_examples=150)
@given(cases())
def test_equals_the_rules_token_by_token(case):
    E, K, D = case['E'], case['K'], case['D']
    generator = torch.Generator().manual_seed(case['seed'])
    torch.manual_seed(case['seed'])
    keys = make(E, D, K, **case['rules'])
    vectors, usage, pull = keys.vectors.numpy().copy(), keys.usage.numpy().copy(), keys.pull.numpy().copy()
    for step, N in enumerate(case['steps']):
        queries, choices = random_step(generator, N, E, K, D)
        gates = torch.rand(N, K, dtype=torch.float64, generator=generator).softmax(1)
        cut = N // 3
        keys.clear()
        for part in (slice(cut), slice(cut, N)):  # two micro-batches, of unequal size
            keys.collect(queries[part], choices[part], gates_NK=gates[part])
        keys.update()
        vectors, usage, pull = literal_update(
            vectors,
            usage,
            pull,
            step,
            queries.numpy(),
            choices.tolist(),
            gates=gates.tolist(),
            **case['rules'],
        )
        np.testing.assert_allclose(keys.vectors.numpy(), vectors, atol=1e-9)
        np.testing.assert_allclose(keys.usage.numpy(), usage, atol=1e-12)
        np.testing.assert_allclose(keys.pull.numpy(), pull, atol=1e-12)
    assert keys.updates == len(case['steps'])


def step_of(keys, *batches):
    keys.clear()
    for batch in batches:
        keys.collect(*batch)
    keys.update()


def test_masked_tokens_count_in_nothing():
    queries, choices = random_step(torch.Generator().manual_seed(0), 12, 6, 3, 4)
    mask = torch.arange(12) % 3 != 0
    masked, without = make(6, 4, 3, alpha=0.5, beta=0.1), make(6, 4, 3, alpha=0.5, beta=0.1)
    without.load_state_dict(masked.state_dict())
    step_of(masked, (queries, choices, mask))
    step_of(without, (queries[mask], choices[mask]))
    torch.testing.assert_close(masked.vectors, without.vectors, rtol=0, atol=1e-12)
    torch.testing.assert_close(masked.usage, without.usage, rtol=0, atol=1e-12)


def test_published_decay_is_undone_by_normalisation_and_the_fix_is_not():
    queries, choices = random_step(torch.Generator().manual_seed(0), 40, 6, 2, 4)
    choices = choices % 4  # experts 4 and 5 are never chosen
    rules = dict(delta=0.25, warmup_steps=0, theta_percentile=0.5)
    published, fixed, none = (
        make(6, 4, 2, **rules),
        make(6, 4, 2, **rules, decay_fix=True),
        make(6, 4, 2, delta=0.0),
    )
    for keys in (fixed, none):
        keys.load_state_dict(published.state_dict())
    for _ in range(3):
        for keys in (published, fixed, none):
            step_of(keys, (queries, choices))
    torch.testing.assert_close(published.vectors, none.vectors, rtol=0, atol=1e-12)
    torch.testing.assert_close(fixed.vectors, none.vectors, rtol=0, atol=1e-12)
    torch.testing.assert_close(published.scores(queries), none.scores(queries), rtol=0, atol=1e-12)
    weakened = fixed.scores(queries)[:, 5] / none.scores(queries)[:, 5]
    torch.testing.assert_close(weakened, torch.full_like(weakened, 0.75**3))
    assert fixed.pull.max() == 1


CLAMPED = dict(key_norm='clamp', delta=0.5, warmup_steps=0, theta_percentile=0.5, alpha=0.0, beta=0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_faded_keys_respawn_at_queries_of_the_step(seed, N):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    E, K, D = 8, 2, 32
    keys = make(E, D, K, **CLAMPED, respawn_threshold=0.2)
    keys.vectors[3:] *= 0.25  # half of that is faded
    keys.usage[:] = torch.arange(E, 0, -1)
    queries, choices = random_step(generator, N, E, K, D)
    mask = torch.rand(N, generator=generator) < 0.7
    expected, usage, _ = literal_update(
        keys.vectors.numpy().copy(),
        keys.usage.numpy().copy(),
        np.ones(E),
        0,
        queries[mask].numpy(),
        choices[mask].tolist(),
        **{k: v for k, v in (RULES | CLAMPED).items()},
    )
    step_of(
        keys,
        (queries[: N // 2], choices[: N // 2], mask[: N // 2]),
        (queries[N // 2 :], choices[N // 2 :], mask[N // 2 :]),
    )
    faded = [i for i in range(E) if np.linalg.norm(expected[i]) < 0.2]
    respawned = faded[: int(mask.sum())]  # as many as there are queries
    others = [i for i in range(E) if i not in respawned]
    np.testing.assert_allclose(keys.vectors[others].numpy(), expected[others], atol=1e-9)
    np.testing.assert_allclose(keys.usage[others].numpy(), usage[others], atol=1e-12)
    assert not keys.usage[respawned].any()
    if respawned:
        similar = keys.vectors[respawned] @ queries[mask].t()
        assert (similar.max(1).values > 0.99).all() and len(set(similar.argmax(1).tolist())) == len(respawned)
        torch.testing.assert_close(keys.vectors[respawned].norm(dim=1), torch.ones(len(respawned)).double())


def test_queries_to_respawn_at_are_drawn_uniformly_from_all_micro_batches():
    torch.manual_seed(0)
    drawn = torch.zeros(6)
    for _ in range(400):
        keys = make(2, 4, 1, **CLAMPED, respawn_threshold=0.2)
        queries = torch.eye(6, 4, dtype=torch.float64) + torch.arange(6)[:, None]
        keys.clear()
        for part in (slice(1), slice(1, 6)):
            keys.collect(queries[part], torch.zeros(len(queries[part]), 1, dtype=torch.int64))
        drawn += (keys.candidates_ED[:, None] == queries).all(2).any(0)
    assert drawn.sum() == 800 and (drawn - 800 / 6).abs().max() < 5 * (400 * 2 / 9) ** 0.5


def test_a_clamped_key_stays_weak_and_a_long_one_does_not_grow():
    keys = make(4, 8, 1, **CLAMPED)
    keys.usage[:] = torch.tensor([5.0, 4.0, 1.0, 0.5])
    for n in range(1, 4):
        keys.clear()
        keys.update()
        norms = keys.vectors.norm(dim=1).tolist()
        assert norms == pytest.approx([1, 1, 0.5**n, 0.5**n])


@pytest.mark.parametrize(
    'rules, message',
    [
        (dict(peer_inertia='maximum'), "Unknown peer_inertia 'maximum'"),
        (dict(usage_by='gate'), "Unknown usage_by 'gate'.*'gate_mass'"),
        (dict(key_norm='clamped'), "Unknown key_norm 'clamped'.*Did you mean 'clamp'"),
        (dict(respawn_threshold=0.1), "needs key_norm 'clamp'"),
        (dict(respawn_threshold=1.0, key_norm='clamp'), 'below 1, a norm; given: 1.0'),
    ],
)
def test_impossible_rules_are_refused(rules, message):
    with pytest.raises(ExperimentError, match=message):
        make(4, 8, 1, **rules)


@pytest.mark.parametrize('N', [0, 1, 57])
def test_query_sums_both_ways(N):
    queries, choices = random_step(torch.Generator().manual_seed(N), N, 9, 4, 5)
    product, added = (query_sums(queries, choices, 9, as_product=way) for way in (True, False))
    torch.testing.assert_close(product, added, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_same_on_cuda():
    queries, choices = random_step(torch.Generator().manual_seed(0), 500, 16, 4, 8)
    here = make(16, 8, 4)
    there = make(16, 8, 4)
    there.load_state_dict(here.state_dict())
    there.cuda()
    step_of(here, (queries, choices))
    step_of(there, (queries.cuda(), choices.cuda()))
    torch.testing.assert_close(there.vectors.cpu(), here.vectors, rtol=0, atol=1e-10)


def test_autocast_does_not_round_the_keys():
    queries, choices = random_step(torch.Generator().manual_seed(0), 30, 6, 2, 4)
    plain = Keys(6, 4, top_k=2, **RULES)
    under = Keys(6, 4, top_k=2, **RULES)
    under.load_state_dict(plain.state_dict())
    step_of(plain, (queries, choices))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        step_of(under, (queries, choices))
        assert under.scores(queries).dtype == torch.float32
    assert torch.equal(plain.vectors, under.vectors)


RANKS = """
import sys, torch, torch.distributed as dist
from lmplay.base.ranks import joined
from lmplay.exp.some.keys import Keys
rank, file = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
both, alone = (Keys(6, 4, top_k=2, alpha=0.5, beta=0.1, delta=0.001, theta_percentile=0.05, warmup_steps=0,
ema_decay=0.9,
                    decay_fix=False).double() for _ in range(2))
alone.load_state_dict(both.state_dict())
queries, choices = torch.randn(10, 4, dtype=torch.float64), torch.rand(10, 6).argsort(1)[:, :2]
alone.collect(queries, choices)
alone.update()
dist.init_process_group('gloo', init_method='file://' + file, rank=rank, world_size=2)
part = slice(0, 3) if rank == 0 else slice(3, 10)
both.collect(queries[part], choices[part])
with joined():
    both.update()
torch.testing.assert_close(both.vectors, alone.vectors, rtol=0, atol=1e-12)
torch.testing.assert_close(both.usage, alone.usage, rtol=0, atol=1e-12)
faded = Keys(6, 4, top_k=2, alpha=0.0, beta=0.0, delta=0.5, theta_percentile=0.5, warmup_steps=0,
             ema_decay=0.9, decay_fix=False, key_norm='clamp', respawn_threshold=0.2).double()
faded.vectors.copy_(0.1 * alone.vectors)
faded.collect(queries[part], choices[part])
with joined():
    faded.update()
both_ranks = [torch.empty_like(faded.vectors) for _ in range(2)]
dist.all_gather(both_ranks, faded.vectors)
assert torch.equal(*both_ranks) and (faded.vectors.norm(dim=1) > 0.99).all()
dist.destroy_process_group()
"""


def test_ranks_add_up(tmp_path):
    script = tmp_path / 'ranks.py'
    script.write_text(RANKS)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(r), str(tmp_path / 'rendezvous')],
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    for process in ranks:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error


def test_gini_and_entropy_of_known_distributions():
    even, one = torch.full((128,), 3.0), torch.zeros(128)
    one[5] = 7.0
    assert gini(even).item() == pytest.approx(0, abs=1e-6) and entropy_bits(even).item() == pytest.approx(7)
    assert gini(one).item() == pytest.approx(127 / 128) and entropy_bits(one).item() == 0
    assert gini(torch.tensor([[1.0, 3.0], [1.0, 1.0]])).tolist() == pytest.approx([0.25, 0])
    assert gini(torch.zeros(4)).item() == 0 and entropy_bits(torch.zeros(4)).item() == 0


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=20))
def test_gini_is_the_mean_absolute_difference(values):
    usage = torch.tensor(values, dtype=torch.float64)
    if usage.sum() > 1e-6:
        expected = (usage[:, None] - usage[None]).abs().mean() / (2 * usage.mean())
        assert gini(usage).item() == pytest.approx(expected.item(), abs=1e-9)
