"""Exports that transformers loads: the same logits, tokens and texts as before, for every experiment."""

import json
import os
import random
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
    for prompt, new in zip(prompts, expected):
        for use_cache in (True, False):
            given = torch.tensor([prompt])
            told = theirs.generate(given, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=-1)
            assert told[0, len(prompt) :].tolist() == new

    theirs.save_pretrained(tmp_path / 'again')
    again = AutoModelForCausalLM.from_pretrained(tmp_path / 'again')
    assert torch.equal(logits_of(again, x), logits_of(theirs, x))
    assert sum(p.numel() for p in again.parameters()) == ours.total_parameters() or name.startswith('some')
