"""Exports that transformers loads: the same logits, tokens and texts as before, for every experiment."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmplay.huggingface  # noqa: F401  registers the class
from lmplay.base.base_model import LMOutput
from lmplay.base.runner_list import find_runner, list_experiments
from lmplay.checks import smallest_parameters
from lmplay.errors import UserError
from lmplay.export.__main__ import main
from lmplay.export.formats import export
from lmplay.generate.generator import generate
from lmplay.runs.checkpoint import save_checkpoint
from lmplay.runs.load import load_model
from lmplay.tokenizers import as_tokenizer
from lmplay.train.api import train
from tests.helpers import ROOT

EXPERIMENTS = [e.name for e in list_experiments() if e.error is None]
PLAIN = {'gpt2_dense': 'GPT2LMHeadModel', 'llama_dense': 'LlamaForCausalLM'}
PLAIN |= {name: 'LlamaForCausalLM' for name in ('modern', 'modern_test', 'smollm2_135m')}
TEXT = 'Zoë said: "Two cats, 34 mats!"\n\n  def main():\n\treturn <|endoftext|> ünï 🎉 '


def checkpoint_of(name, folder, **parameters):
    """A checkpoint of an experiment at its smallest, as a run writes it, its weights far from their start."""
    torch.manual_seed(0)
    chosen = smallest_parameters(name) | parameters
    model = find_runner(name).function(**chosen).build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    tokenizer = as_tokenizer(model.tokenizer)
    state = {
        'exp': name,
        'exp_file': None,
        'parameters': {k: v for k, v in chosen.items() if k != 'tokenizer'},
        'tokenizer': {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint},
        'progress': {'total_step': 3, 'validation_loss': 2.5},
    }
    save_checkpoint(folder, model, None, state)
    return folder


def logits_of(model, x):
    with torch.no_grad():
        out = model(x)
    return out.logits if isinstance(out, LMOutput) or hasattr(out, 'logits') else out


def tokens(rows=2, length=24, top=256):
    return torch.randint(0, top, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_close(a, b):
    assert ((a - b).abs().max() / b.abs().max().clamp(min=1)) <= 1e-5


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_computes_generates_and_is_saved_as_before(name, tmp_path):
    source, out = checkpoint_of(name, tmp_path / 'c'), tmp_path / 'out'
    export(source, out)
    ours, theirs = load_model(source)[0].eval(), AutoModelForCausalLM.from_pretrained(out)
    assert type(theirs).__name__ == PLAIN.get(name, 'LMPlayForCausalLM')
    x, n_vocab = tokens(), ours.tokenizer.n_vocab
    assert_close(logits_of(theirs, x)[..., :n_vocab], logits_of(ours, x))
    fast = AutoTokenizer.from_pretrained(out)
    assert fast(TEXT)['input_ids'] == list(ours.tokenizer.encode(TEXT))
    assert fast.decode(fast(TEXT)['input_ids']) == TEXT

    prompts = [x[0, :5].tolist(), x[1, :9].tolist()]
    expected = generate(ours, prompts, max_new_tokens=6, temperature=0)
    for prompt, new, use_cache in zip(prompts, expected, (True, False)):
        options = dict(max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=-1)
        told = theirs.generate(torch.tensor([prompt]), **options)
        assert told[0, len(prompt) :].tolist() == new

    theirs.save_pretrained(tmp_path / 'again')
    again = AutoModelForCausalLM.from_pretrained(tmp_path / 'again')
    assert torch.equal(logits_of(again, x), logits_of(theirs, x))
    assert sum(p.numel() for p in again.parameters()) == ours.total_parameters() or name.startswith('some')


ALONE = """
import sys
sys.modules['lmplay'] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (a.from_pretrained(sys.argv[1]) for a in (AutoModelForCausalLM, AutoTokenizer))
x = torch.tensor([tokenizer(sys.argv[2])['input_ids']])
torch.save({'ids': x, 'logits': model(x).logits.detach(), 'class': type(model).__module__}, sys.argv[3])
"""


def python(code, *arguments):
    command = [sys.executable, '-c', code, *map(str, arguments)]
    offline = {'HF_HUB_OFFLINE': '1', 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=200)


def test_gpt2_dense_needs_transformers_alone(tmp_path):
    """GPT-2's own tokenizer too, converted from tiktoken's form."""
    source = checkpoint_of('gpt2_dense', tmp_path / 'c', tokenizer='gpt2', vocab_size=50_257)
    export(source, tmp_path / 'out')
    done = python(ALONE, tmp_path / 'out', TEXT, tmp_path / 'told.pt')
    assert done.returncode == 0, done.stderr
    ours, told = load_model(source)[0].eval(), torch.load(tmp_path / 'told.pt')
    assert told['class'].startswith('transformers.models.gpt2')
    assert told['ids'][0].tolist() == ours.tokenizer.encode(TEXT)
    assert_close(told['logits'], logits_of(ours, told['ids']))
    assert 'lmplay.huggingface' not in (tmp_path / 'out' / 'README.md').read_text()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """(our model, transformers' of it) of a test_runner, exported once."""
    folder = tmp_path_factory.mktemp('exported')
    source = checkpoint_of('test_runner', folder / 'c')
    export(source, folder / 'out')
    return load_model(source)[0].eval(), AutoModelForCausalLM.from_pretrained(folder / 'out')


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_at_either_end_changes_no_logit(exported, side):
    ours, theirs = exported
    rows = [tokens(1, n)[0] for n in (5, 24, 13)]
    x, mask = torch.full((3, 24), 7), torch.zeros(3, 24, dtype=torch.int64)
    places = [slice(24 - len(r), 24) if side == 'left' else slice(0, len(r)) for r in rows]
    for i, (row, place) in enumerate(zip(rows, places)):
        x[i, place], mask[i, place] = row, 1
    logits = theirs(x, attention_mask=mask).logits
    for i, (row, place) in enumerate(zip(rows, places)):
        assert_close(logits[i, place], logits_of(ours, row[None])[0])
    if side == 'left':
        told = theirs.generate(x, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=-1)
        expected = generate(ours, [r.tolist() for r in rows], max_new_tokens=4, temperature=0)
        assert told[:, 24:].tolist() == expected


@pytest.mark.parametrize('name', ['test_runner', 'gpt2_moe_test'])
def test_beams_are_the_same_with_and_without_the_cache(name, tmp_path):
    export(checkpoint_of(name, tmp_path / 'c'), tmp_path / 'out')
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
    options = dict(num_beams=3, max_new_tokens=8, do_sample=False)
    with_cache, without = (model.generate(tokens(2, 6), use_cache=u, **options) for u in (True, False))
    assert torch.equal(with_cache, without)


def test_loss_and_limits(exported):
    ours, theirs = exported
    x = tokens()
    labels = x.clone()
    labels[0, :4] = -100
    expected = torch.nn.functional.cross_entropy(
        logits_of(ours, x)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    assert_close(theirs(x, labels=labels).loss, expected)
    assert theirs(x, return_dict=False)[0].shape == (2, 24, 257)
    with pytest.raises(UserError, match='at most 64 positions; given: 70'):
        theirs(tokens(1, 70))
    with pytest.raises(UserError, match='padding at one end'):
        theirs(x, attention_mask=torch.arange(24).expand(2, -1) % 2)
    half = type(theirs).from_pretrained(theirs.name_or_path, dtype='bfloat16')
    assert half.dtype is torch.bfloat16 and half(x).logits.isfinite().all()
    with pytest.raises(UserError, match="dtype must be 'auto' or one of torch's"):
        type(theirs).from_pretrained(theirs.name_or_path, dtype='float99')


MODEL = """
import torch
from torch import nn
from lmplay.base.base_model import LMBase
from lmplay.tokenizers import get_tokenizer
from .parts import widen

class Mine(LMBase):
    def __init__(self, embed_dim=16, max_len=32, tokenizer='bytes', **ignore):
        super().__init__('mine', max_len=max_len)
        self.tokenizer = get_tokenizer(tokenizer)
        self.embed = nn.Embedding(self.tokenizer.n_vocab, widen(embed_dim))
        self.register_buffer('falling', torch.arange(max_len, 0, -1.0), persistent=False)
        self.fc = nn.Linear(widen(embed_dim), self.tokenizer.n_vocab, bias=False)
        self.fc.weight = self.embed.weight

    def features(self, x):
        return self.embed(x) * self.falling[: x.shape[1], None]
"""
VERSIONS = """
import os, pathlib
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from .model import Mine
if 'MARK' in os.environ:
    pathlib.Path(os.environ['MARK']).write_text('run')

@expose_runner('other')
def other(**kwargs):
    return BasicModelRunner(Mine, overrides=dict(embed_dim=8), **kwargs)

@expose_runner('mine')
def mine(**kwargs):
    return BasicModelRunner(Mine, **kwargs)
"""
LOAD = """
import json, os, pathlib, sys
import torch, lmplay.huggingface
from transformers import AutoModelForCausalLM
out, mark = sys.argv[1:3]
os.environ['MARK'] = mark
config = pathlib.Path(out, 'config.json')
hostile = json.loads(config.read_text())
versions = f'{out}/source/versions.py'
for change in ({}, {'exp': versions}, {'exp': versions + ':mine'}, {'experiment': versions + ':mine'}):
    config.write_text(json.dumps(hostile | change))
    try:
        AutoModelForCausalLM.from_pretrained(out)
    except lmplay.UserError as error:
        print(error)
    assert not pathlib.Path(mark).exists()
config.write_text(json.dumps(hostile))
model = AutoModelForCausalLM.from_pretrained(out, exp=versions + ':mine')
assert pathlib.Path(mark).exists()
assert model.model.fc.weight is model.model.embed.weight
model.save_pretrained(sys.argv[4])
assert 'exp' not in json.loads(pathlib.Path(sys.argv[4], 'config.json').read_text())
assert pathlib.Path(sys.argv[4], 'source', 'parts.py').is_file()
torch.save(model(torch.arange(20)[None]).logits.detach(), sys.argv[3])
"""


def test_the_users_own_experiment_runs_where_it_is_named(tmp_path):
    """Its source travels with the model, and no configuration can make it run."""
    own = tmp_path / 'mine'
    own.mkdir()
    (own / 'parts.py').write_text('def widen(n):\n    return 2 * n\n')
    (own / 'model.py').write_text(MODEL)
    (own / 'versions.py').write_text(VERSIONS)
    (tmp_path / 'a.txt').write_text('Line after line.\n' * 200)
    exp = f'{own / "versions.py"}:mine'
    plan = {'t': {'dataset': str(tmp_path / 'a.txt'), 'steps': 2, 'batch_size': 2, 'row_length': 16}}
    train(exp, plan=plan, quiet=True, run_dir=tmp_path / 'run', device='cpu')
    out = tmp_path / 'out'
    assert main([str(tmp_path / 'run'), '--to', str(out), '--exp', exp]) == 0
    assert "exp='DIR/source/versions.py:mine'" in (out / 'README.md').read_text()
    done = python(LOAD, out, tmp_path / 'mark', tmp_path / 'logits.pt', tmp_path / 'again')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Unknown experiment 'mine'") == 3 and 'source/versions.py:mine' in done.stdout
    assert_close(
        torch.load(tmp_path / 'logits.pt'),
        logits_of(load_model(tmp_path / 'run', exp=exp)[0], torch.arange(20)[None]),
    )


def test_the_card_says_what_was_trained_on_what(tmp_path):
    text = ''.join(f'Line {i} of the text.\n' for i in range(400))
    (tmp_path / 'a.txt').write_text(text)
    plan = {
        'tokenizer': {'vocab_size': 300},
        'model': {'qk_norm': True},  # which Llama lacks
        'stages': {'first': {'dataset': str(tmp_path / 'a.txt'), 'steps': 2, 'batch_size': 2, 'lr': 0.002}},
    }
    run = train('modern_test', plan=plan, quiet=True, run_dir=tmp_path / 'run', device='cpu', seed=5)
    assert main([str(tmp_path / 'run'), '--to', str(tmp_path / 'out')]) == 0
    card = (tmp_path / 'out' / 'README.md').read_text()
    for said in (
        'LMPlayForCausalLM',
        'import lmplay.huggingface',
        '"qk_norm": true',
        f'{run.loss():.4f}',
        '| seed | 5 |',
        'a.txt',
        '| lr | 0.002 |',
        '2 steps, ',
    ):
        assert said in card
    fast = AutoTokenizer.from_pretrained(tmp_path / 'out')
    assert fast(text)['input_ids'] == run.model().tokenizer.encode(text)
    again = main([str(tmp_path / 'run'), '--to', str(tmp_path / 'out')])
    assert again == 2 and not list(tmp_path.glob('.writing*'))


def test_a_model_that_keeps_state_elsewhere_is_refused_and_nothing_is_written(tmp_path, capsys):
    source = checkpoint_of('test_runner', tmp_path / 'c')
    assert main([str(source), '--to', str(tmp_path / 'out'), '--exp', str(forgetful(tmp_path))]) == 2
    assert 'loaded again, its logits differ' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def forgetful(folder):
    """A gpt2ish whose logits are multiplied by a number that no parameter or buffer holds."""
    own = folder / 'forgetful'
    own.mkdir()
    (own / 'versions.py').write_text("""
import itertools
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from lmplay.exp.gpt2ish.model import GPT2
counter = itertools.count(1)

class Forgetful(GPT2):
    def __init__(self, tokenizer='bytes', **kwargs):
        super().__init__(tokenizer=tokenizer, **kwargs)
        self.factor = next(counter)

    def features(self, x):
        return self.factor * super().features(x)

@expose_runner('forgetful')
def forgetful(**kwargs):
    return BasicModelRunner(Forgetful, **kwargs)
""")
    return own / 'versions.py'


CHANGED = """
from torch import nn
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from lmplay.exp.modern.model import Modern

class Doubled(Modern):
    def features(self, x):
        return 2 * super().features(x)

@expose_runner('doubled')
def doubled(**kwargs):
    return BasicModelRunner(Doubled, **kwargs)
"""


def test_a_changed_copy_is_not_exported_as_what_it_was_copied_from(tmp_path):
    (tmp_path / 'doubled').mkdir()
    versions = tmp_path / 'doubled' / 'versions.py'
    versions.write_text(CHANGED)
    source, out = checkpoint_of('modern_test', tmp_path / 'c', embed_dim=24), tmp_path / 'out'
    export(source, out, exp=str(versions))
    theirs = AutoModelForCausalLM.from_pretrained(out)  # named to this process by the export
    assert type(theirs).__name__ == 'LMPlayForCausalLM' and theirs.config.experiment == 'doubled'
    assert_close(logits_of(theirs, tokens()), 2 * logits_of(load_model(source)[0].eval(), tokens()))
