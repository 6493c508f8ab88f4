"""The same weights have the same scores as lm-evaluation-harness's own Hugging Face model finds."""

import math
import random

import pytest
import torch

pytest.importorskip('lm_eval')

from lm_eval.api.instance import Instance  # noqa: E402

from lmplay.device import Compute  # noqa: E402
from lmplay.errors import ExperimentError, UserError  # noqa: E402
from lmplay.evaluation.model import EvaluatedModel  # noqa: E402
from lmplay.export.formats import export  # noqa: E402
from lmplay.runs.load import load_model  # noqa: E402
from tests.export.test_huggingface import checkpoint_of  # noqa: E402
from tests.helpers import tiny  # noqa: E402

CPU = Compute(torch.device('cpu'))
MAX_LEN = 64
WORDS = 'the a cat dog sat on mat Zoë saw 12 hats, and. then; ran\n "so" 🎉'.split(' ')


def instances(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]


def text(rng, words):
    return ' '.join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    """(ours, lm_eval's) of a gpt2_dense on bytes, so that texts are longer than its 64 positions."""
    pytest.importorskip('accelerate')  # lm_eval's model imports it
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp('evaluated')
    source = checkpoint_of('gpt2_dense', folder / 'c')
    export(source, folder / 'out')
    ours = EvaluatedModel(load_model(source)[0], CPU, batch_size=3)
    theirs = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder / 'out'),
        tokenizer=AutoTokenizer.from_pretrained(folder / 'out'),
        batch_size=3,
        device='cpu',
    )
    assert ours.model.max_len == theirs.max_length == MAX_LEN
    return ours, theirs


def test_log_likelihoods_are_the_same(both):
    """Contexts that are empty, end in a space, are longer than the model, in batches of unequal length."""
    rng = random.Random(0)
    pairs = [(text(rng, rng.randint(0, 30)), ' ' + text(rng, rng.randint(1, 4))) for _ in range(20)]
    pairs += [
        ('', 'a'),
        ('', text(rng, 8)),
        ('ends in a space ', 'here'),
        ('x' * 300, 'y' * MAX_LEN),
        ('x', 'y'),
    ]
    told = [model.loglikelihood(instances('loglikelihood', *pairs)) for model in both]
    for (ours, our_greedy), (theirs, their_greedy) in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5) and our_greedy == their_greedy


def test_rolling_log_likelihoods_are_the_same(both):
    rng = random.Random(1)
    texts = ['', 'a', 'x' * MAX_LEN, 'x' * (MAX_LEN + 1), 'y' * (2 * MAX_LEN)]
    texts += [text(rng, n) for n in (3, 30, 60)]
    requests = instances('loglikelihood_rolling', *[(t,) for t in texts])
    ours, theirs = (model.loglikelihood_rolling(requests) for model in both)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[0] == 0


@pytest.mark.parametrize(
    'settings', [{'until': ['a', '\n']}, {'until': ['e'], 'max_gen_toks': 40}, {'until': []}]
)
def test_generated_texts_are_the_same(both, settings):
    rng = random.Random(2)
    contexts = [text(rng, n) for n in (1, 30, 4, 15, 2)]
    settings = {'max_gen_toks': 12, 'do_sample': False} | settings
    requests = instances('generate_until', *[(c, settings) for c in contexts])
    ours, theirs = (model.generate_until(requests) for model in both)
    assert ours == theirs


def test_more_text_than_the_model_is_long_is_generated_in_a_window(both):
    ours, _ = both
    (told,) = ours.generate_until(
        instances('generate_until', ('x' * 100, {'until': [], 'max_gen_toks': 200}))
    )
    assert 0 < len(told.encode()) <= 600


def test_a_continuation_longer_than_the_model_goes_in_windows(both):
    """Which lm_eval's refuses; after the end of text it is what it rolls over."""
    _, theirs = both
    ours, long = both[0], text(random.Random(4), 40)
    ((found, _),) = ours.loglikelihood(instances('loglikelihood', ('', long)))
    (expected,) = theirs.loglikelihood_rolling(instances('loglikelihood_rolling', (long,)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_scores_do_not_depend_on_what_else_is_asked(both):
    ours, _ = both
    rng = random.Random(3)
    pairs = [(text(rng, rng.randint(1, 12)), ' ' + text(rng, 2)) for _ in range(12)]
    together = ours.loglikelihood(instances('loglikelihood', *pairs))
    for pair, (found, _) in zip(pairs, together, strict=True):
        ((alone, _),) = ours.loglikelihood(instances('loglikelihood', pair))
        assert found == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize('exp', ['gpt2ish', 'modern', 'unified'])
def test_a_log_likelihood_is_that_of_the_logits(exp):
    """Of models with a fused head and with a forward of their own."""
    model = tiny(exp).eval()
    asked = EvaluatedModel(model, CPU)
    ((found, greedy),) = asked.loglikelihood(instances('loglikelihood', ('Once', ' upon')))
    tokens = torch.tensor([asked.tok_encode('Once upon')])
    with torch.no_grad():
        answer = model(tokens)
    logits = getattr(answer, 'logits', answer)[0, 3:-1].double()
    expected = torch.log_softmax(logits, -1).gather(1, tokens[0, 4:, None]).sum()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert greedy == bool((logits.argmax(-1) == tokens[0, 4:]).all())


def test_what_has_no_score_is_refused(both):
    ours, _ = both
    with pytest.raises(UserError, match='adds no token'):
        ours.loglikelihood(instances('loglikelihood', ('context', '')))
    with pytest.raises(UserError, match="generation setting 'num_beams'"):
        ours.generate_until(instances('generate_until', ('a', {'until': [], 'num_beams': 3})))
    diverged = tiny()
    with torch.no_grad():
        next(diverged.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match='diverged'):
        EvaluatedModel(diverged, CPU).loglikelihood(instances('loglikelihood', ('a', 'b')))
    looks_ahead = tiny()
    looks_ahead.causal = False
    with pytest.raises(ExperimentError, match='later positions'):
        EvaluatedModel(looks_ahead, CPU)
