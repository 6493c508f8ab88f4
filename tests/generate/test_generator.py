import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.base.base_model import BasicModelRunner, LMOutput
from lmplay.base.runner_list import find_runner
from lmplay.errors import ExperimentError, UserError
from lmplay.exp.gpt2ish.model import GPT2
from lmplay.generate.generator import TextStream, generate, window_start
from lmplay.tokenizers import BPETokenizer, get_tokenizer

MAX_LEN = 12
EOT = 256


@functools.cache
def tiny():
    torch.manual_seed(3)
    model = find_runner('test_runner').function(max_len=MAX_LEN, tokenizer='bytes').build()
    for p in model.parameters():  # fresh weights say next to nothing; these prefer tokens clearly
        p.data *= 4
    return model


@torch.no_grad()
def greedy_without_cache(model, prompt, new, penalty=1.0):
    """The definition: every step from the whole window, no cache."""
    model.eval()
    tokens = list(prompt) or [EOT]
    for _ in range(new):
        last = len(tokens) - 1
        logits = model(torch.tensor([tokens[window_start(last, MAX_LEN) :]]))[0, -1]
        for i in set(tokens):
            logits[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
        tokens.append(int(logits.argmax()))
    return tokens[-new:] if new else []


class Uncached(GPT2):
    """The same model with a forward of its own that takes no cache."""

    def forward(self, x):
        return self.fc(self.features(x))


class ReturnsLogitsAlone(GPT2):
    """It takes a cache, and gives none back."""

    def forward(self, x, cache=None):
        return self.fc(self.features(x))


class Reports(GPT2):
    """It takes no cache, and returns more than logits."""

    def forward(self, x):
        return LMOutput(logits=self.fc(self.features(x)))


class FeaturesWithoutACache(GPT2):
    """Its features take no cache, so the forward that it inherits can't keep one either."""

    def features(self, x):
        return super().features(x)


WITHOUT_A_CACHE = [Uncached, ReturnsLogitsAlone, Reports, FeaturesWithoutACache]


@functools.cache
def tiny_without_a_cache(cls):
    model = BasicModelRunner(cls, **tiny().hyperparameters, tokenizer='bytes').build()
    model.load_state_dict(tiny().state_dict())
    return model


token_lists = st.lists(st.integers(0, 255), max_size=30)


@settings(max_examples=25, deadline=None)
@given(st.lists(token_lists, min_size=1, max_size=4), st.integers(0, 30), st.sampled_from([1.0, 1.3, 0.8]))
def test_batched_cached_text_equals_the_definition(prompts, new, penalty):
    """Prompts of any lengths, the empty one and those beyond max_len too, within and past max_len."""
    found = generate(tiny(), prompts, max_new_tokens=new, temperature=0, repetition_penalty=penalty)
    assert found == [greedy_without_cache(tiny(), prompt, new, penalty) for prompt in prompts]


@pytest.mark.parametrize('cls', WITHOUT_A_CACHE)
@settings(max_examples=8, deadline=None)
@given(prompts=st.lists(token_lists, min_size=1, max_size=3), new=st.integers(0, 30))
def test_text_without_a_cache_is_the_text_with_one(cls, prompts, new):
    """For the same weights, within and past max_len."""
    greedy = dict(max_new_tokens=new, temperature=0)
    assert generate(tiny_without_a_cache(cls), prompts, **greedy) == generate(tiny(), prompts, **greedy)


@pytest.mark.parametrize('cls', WITHOUT_A_CACHE)
def test_a_model_without_a_cache_is_said_to_be_slower_once(cls, caplog):
    name = f'Slow{cls.__name__}'
    model = BasicModelRunner(type(name, (cls,), {}), **tiny().hyperparameters, tokenizer='bytes').build()
    for _ in range(2):
        generate(model, [[1, 2], [3]], max_new_tokens=3)
    told = [r.getMessage() for r in caplog.records if 'slower' in r.getMessage()]
    assert len(told) == 1 and told[0].startswith(f'{name} has no key/value cache')


def test_a_model_with_a_cache_is_not_said_to_be_slower(caplog):
    generate(tiny(), [[1, 2]], max_new_tokens=3)
    assert 'slower' not in caplog.text


@pytest.mark.parametrize('out', [lambda x: x, lambda x: torch.zeros(2, 257), lambda x: (1, 2, 3)])
def test_a_forward_that_returns_no_logits_is_named(out):
    class Wrong(GPT2):
        def forward(self, x):
            return out(x)

    model = BasicModelRunner(Wrong, **tiny().hyperparameters, tokenizer='bytes').build()
    with pytest.raises(ExperimentError, match='forward of Wrong must return logits'):
        generate(model, [[1]], max_new_tokens=2)


@given(st.integers(1, 9), st.integers(0, 60))
def test_windows_fit_and_slide_seldom(max_len, position):
    start = window_start(position, max_len)
    assert 1 <= position - start + 1 <= max_len
    if position >= max_len:
        assert position - start + 1 > max_len // 2
    starts = {window_start(p, max_len) for p in range(position + 1)}
    assert len(starts) <= 1 + -(-max(0, position + 1 - max_len) // (max_len - max_len // 2))


@settings(max_examples=15, deadline=None)
@given(st.lists(token_lists, min_size=1, max_size=4), token_lists, st.integers(0, 5))
def test_a_row_does_not_depend_on_the_rest_of_its_batch(prompts, other, seed):
    sampling = dict(max_new_tokens=20, temperature=1.5, top_p=0.95, seed=seed)
    alone = generate(tiny(), prompts, **sampling)
    assert generate(tiny(), [*prompts, other, other], **sampling)[: len(prompts)] == alone


def test_seeds():
    def text(seed):
        return generate(tiny(), [[1, 2, 3]] * 3, max_new_tokens=20, temperature=3.0, seed=seed)

    assert text(1) == text(1) != text(2)
    assert len({tuple(row) for row in text(1)}) == 3
    state = torch.random.get_rng_state()
    text(1)
    assert torch.equal(
        state, torch.random.get_rng_state()
    )  # training goes on as if nothing had been generated


def test_samples_follow_the_model():
    model = tiny()
    prompt = [65, 66]
    with torch.no_grad():
        expected = model.eval()(torch.tensor([prompt]))[0, -1].double().softmax(-1)
    rows = 3000
    counts = torch.zeros(model.tokenizer.n_vocab, dtype=torch.float64)
    for (token,) in generate(model, [prompt] * rows, max_new_tokens=1, temperature=1.0):
        counts[token] += 1
    often = expected > 5 / rows
    chi2 = ((counts - rows * expected)[often] ** 2 / (rows * expected)[often]).sum().item()
    degrees = int(often.sum())
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5


def test_stop_token_ends_its_row_only():
    free = generate(tiny(), [[1], [2, 3], [4]], max_new_tokens=25, temperature=3.0)
    stop = free[1][7]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert (
        generate(tiny(), [[1], [2, 3], [4]], max_new_tokens=25, temperature=3.0, stop_token=stop) == expected
    )
    assert len(expected[1]) <= 7


def test_tokens_are_told_as_they_come():
    told = [[], []]
    found = generate(
        tiny(),
        [[1], [2, 3, 4]],
        max_new_tokens=15,
        temperature=3.0,
        stop_token=7,
        on_token=lambda row, token: told[row].append(token),
    )
    assert told == found


@pytest.mark.parametrize('mode', [True, False])
def test_the_mode_of_the_model_is_restored(mode):
    model = tiny().train(mode)
    generate(model, [[1]], max_new_tokens=2)
    assert model.training is mode
    with pytest.raises(RuntimeError, match='stop here'):
        generate(model, [[1]], max_new_tokens=2, on_token=_fail)
    assert model.training is mode


def _fail(row, token):
    raise RuntimeError('stop here')


def test_dropout_is_off():
    model = tiny().train()
    assert generate(model, [[1, 2]], max_new_tokens=9, temperature=0) == [
        greedy_without_cache(model, [1, 2], 9)
    ]


def test_nothing_asked_for():
    assert generate(tiny(), [], max_new_tokens=5) == []
    assert generate(tiny(), [[1], []], max_new_tokens=0) == [[], []]


@pytest.mark.parametrize(
    'prompts, settings, sentence',
    [
        ([[257]], {}, 'Token 257 is not in the vocabulary of the model, which ends at 256'),
        ([[-1]], {}, 'Token -1 is not'),
        ([[1]], {'max_new_tokens': -1}, 'max_new_tokens must be 0 or above'),
        ([[1]], {'top_k': 0}, 'top_k must be at least 1'),
    ],
)
def test_mistakes(prompts, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(tiny(), prompts, **{'max_new_tokens': 3} | settings)


def test_padded_vocabularies_are_not_sampled():
    model = find_runner('test_runner').function(max_len=8, tokenizer='bytes').build()
    model.fc = torch.nn.Linear(64, 300)
    model.fc.bias.data[257:] = 100
    assert max(generate(model, [[1]], max_new_tokens=8, temperature=1.0)[0]) < 257


def stream(tokenizer, ids):
    text = TextStream(tokenizer)
    return [text.feed(i) for i in ids] + [text.finish()]


@functools.cache
def tokenizer_of(name):
    if name != 'whitespace':
        return get_tokenizer(name)
    return BPETokenizer.train(
        ['one two, three. Größe 漢字 !'] * 3,
        vocab_size=80,
        pre_tokenizer='whitespace',
        special_tokens=['<|endoftext|>', '[UNK]'],
    )


@pytest.mark.parametrize('name', ['bytes', 'gpt2', 'whitespace'])
@settings(deadline=None)
@given(st.text(max_size=200))
def test_streamed_text_is_the_whole_text(name, text):
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert ''.join(pieces) == tokenizer.decode(ids)
    if '\ufffd' not in text:
        assert '\ufffd' not in ''.join(pieces)


def test_streamed_words_of_a_whitespace_tokenizer():
    tokenizer = tokenizer_of('whitespace')
    ids = tokenizer.encode('one two , three . ' * 30)
    assert len(ids) > 64
    assert ''.join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 256), max_size=300))
def test_streamed_garbage_is_the_whole_garbage(ids):
    tokenizer = get_tokenizer('bytes')
    assert ''.join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_streams_do_not_wait_for_the_end():
    pieces = stream(get_tokenizer('bytes'), list('aé漢😀b'.encode()))
    assert pieces == ['a', '', 'é', '', '', '漢', '', '', '', '😀', 'b', '']


def test_long_streams_take_linear_time():
    class Counting:
        decoded = 0

        def decode(self, ids):
            self.decoded += len(ids)
            return bytes(ids).decode('utf-8', errors='replace')

    tokenizer = Counting()
    ids = list(Path(__file__).read_bytes()[:4000])
    assert ''.join(stream(tokenizer, ids)) == bytes(ids).decode('utf-8', errors='replace')
    assert tokenizer.decoded < 64 * len(ids)
