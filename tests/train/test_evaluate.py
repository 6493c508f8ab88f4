import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.base.base_model import LMOutput
from lmplay.data.rows import IGNORE
from lmplay.device import Compute
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.evaluate import Evaluator
from lmplay.train.objective import Objective
from tests.helpers import EOT, experiment, held_out

CPU = Compute(torch.device('cpu'))
DOCUMENTS = st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=12), min_size=1, max_size=6)


def evaluate(model, held, *, sequences=8, padding=False):
    return Evaluator(held, CPU, padding).evaluate(Objective(model), sequences_per_batch=sequences)


@torch.no_grad()
def naive(model, document, length=8):
    """(summed nats, right predictions, tokens) of a document, its tokens one by one; longer ones are cut."""
    tokens = [EOT, *document, EOT][: length + 1]
    nats = right = 0.0
    for i in range(1, len(tokens)):
        logits = model(torch.tensor([tokens[:i]]))[0, -1]
        nats += F.cross_entropy(logits, torch.tensor(tokens[i])).item()
        right += float(logits.argmax() == tokens[i])
    return nats, right, len(tokens) - 1


@settings(max_examples=15)
@given(DOCUMENTS, st.integers(1, 4))
def test_it_is_the_mean_over_tokens_however_it_is_batched(documents, sequences):
    model = experiment('mean').eval()
    found = evaluate(model, held_out(*documents, long_documents='cut'), sequences=sequences)
    each = [naive(model, document) for document in documents]
    nats, right, tokens = map(sum, zip(*each))
    assert found.metrics['tokens'] == tokens
    assert found.metrics['loss'] == pytest.approx(nats / tokens, rel=1e-5)
    assert found.metrics['accuracy'] == pytest.approx(right / tokens)
    assert found.metrics['perplexity'] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert sorted(found.documents['loss'].tolist()) == pytest.approx(sorted(n for n, _, _ in each), rel=1e-5)
    assert found.documents['tokens'].sum() == tokens and found.documents['right'].sum() == right


def test_bits_per_byte_are_of_the_bytes_that_are_scored():
    model = experiment('mean')
    found = evaluate(model, held_out([1, 2, 3], [4, 5]))
    assert found.metrics['bits_per_byte'] == pytest.approx(found.documents['loss'].sum() / math.log(2) / 5)


def test_domains_are_evaluated_apart_and_add_up():
    model, documents = experiment('mean'), ([1, 2, 3], [4, 5], [6, 7, 8, 9])
    found = evaluate(model, held_out(*documents, domains=[0, 1, 0]))
    domains = found.metrics['domains']
    assert set(domains) == {'d0', 'd1'} and domains['d1']['tokens'] == 3
    parts = sum(d['loss'] * d['tokens'] for d in domains.values())
    assert parts / found.metrics['tokens'] == pytest.approx(found.metrics['loss'])
    alone = evaluate(model, held_out(documents[1]))
    assert alone.metrics['loss'] == pytest.approx(domains['d1']['loss'])
    assert set(found.examples) == {'d0', 'd1'}


@pytest.mark.parametrize('score_padding', [False, True])
def test_a_domain_in_which_nothing_is_scored_has_no_figures(score_padding):
    """The mean of nothing is not 0, and does not touch the others."""
    model, documents = experiment('mean'), ([1, 2, 3], [4, 5, 6, 7, 8, 9])
    options = dict(prompts=[0, 6], include_prompts=False, score_padding=score_padding, length=5)
    held = held_out(*documents, domains=[0, 1], long_documents='cut', **options)
    found = evaluate(model, held, padding=score_padding)
    none = dict.fromkeys(('loss', 'accuracy', 'perplexity', 'bits_per_byte'))
    assert found.metrics['domains']['d1'] == none | {'tokens': 0}
    assert held.unscored == 1 and found.metrics['tokens'] == 4
    assert found.metrics['loss'] == found.metrics['domains']['d0']['loss'] > 0


def test_scored_padding_is_counted_apart():
    """As some published code scores it: padding is predicted too, `loss` remains that of the text."""
    model = experiment('mean')
    documents = ([1, 2], [3, 4, 5, 6, 7])
    plain = evaluate(model, held_out(*documents))
    padded = evaluate(model, held_out(*documents, score_padding=True), padding=True, sequences=1)
    assert padded.metrics['loss'] == pytest.approx(plain.metrics['loss'])
    assert padded.metrics['tokens'] == plain.metrics['tokens']
    assert 'loss_with_pad' not in plain.metrics
    rows = torch.tensor([[EOT, 1, 2, EOT, *[EOT] * 5], [EOT, 3, 4, 5, 6, 7, EOT, EOT, EOT]])
    with torch.no_grad():
        expected = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    assert padded.metrics['loss_with_pad'] == pytest.approx(expected.item(), rel=1e-5)
    assert padded.metrics['perplexity_with_pad'] == pytest.approx(math.exp(expected), rel=1e-4)


def test_what_a_model_reports_is_averaged_over_real_tokens():
    class Reporting(type(experiment('mean'))):
        def forward(self, x):
            metrics = {'first': x[:, 1].float().mean()}
            return LMOutput(self.logits(x), metrics=metrics)

    found = evaluate(Reporting(), held_out([10] * 2, [100] * 5), sequences=1)
    assert found.model_metrics['first'].item() == pytest.approx((10 * 3 + 100 * 6) / 9)


def test_the_model_is_left_in_evaluation_mode_without_gradients_and_random_numbers():
    model = experiment('troubled')
    state = torch.random.get_rng_state()
    first, second = (evaluate(model, held_out([1, 2, 3])) for _ in range(2))
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert first.metrics == second.metrics  # no dropout
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_loss_beyond_all_numbers_has_a_perplexity_all_the_same():
    model = experiment('mean')
    with torch.no_grad():
        model.out.bias[1:] = 1e4
    found = evaluate(model, held_out([0, 0, 0]))
    assert found.metrics['loss'] > 700 and found.metrics['perplexity'] == pytest.approx(math.exp(700))


def example(x, y, prediction, **options):
    from lmplay.train.evaluate import Evaluation

    arrays = (np.array(x), np.array(y), np.array(prediction))
    return Evaluation({}, {}, {}, {'d': arrays}).example(BytesTokenizer(), **options)


def test_an_example_shows_for_each_next_token_what_the_model_predicts():
    text, guess = b'abcdefgh', b'xxxxEFGH'
    shown = example(list(text[:-1]), list(text[1:]), list(guess[1:]))
    assert shown == {'prompt': 'abcd', 'truth': 'efgh', 'prediction': 'EFGH'}
    assert example(list(text[:-1]), list(text[1:]), list(guess[1:]), length=2)['truth'] == 'ef'


def test_an_example_of_a_sequence_in_which_nothing_is_scored():
    assert example([1, 2], [IGNORE, IGNORE], [0, 0]) == {'prompt': '', 'truth': '', 'prediction': ''}
