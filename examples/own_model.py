"""A model of your own in one file, compared with gpt2ish on your own text.

    python examples/own_model.py my_text.txt
    python examples/own_model.py my_folder/ --tokens 2000000 --seeds 5

The text is a file, a folder or a glob, as docs/data.md describes; more than 1 MB says more. Several documents
are better than one: some of them are held out. To train the model by itself:
lmp_trainer --exp examples/own_model.py
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn

import lmplay
from lmplay.exp.gpt2ish.model import GPT2


class Smeared(GPT2):
    """gpt2ish whose embedding of a token also takes in the one before it: e[t] + s * e[t - 1], with a learned
    factor s for each entry, zero at first."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.smear = nn.Parameter(torch.zeros(self.pos_embed.shape[-1]))

    def features(self, x):
        """(B, T) token ids to (B, T, D). Without a cache: generation reads the whole text for each token."""
        h = self.tok_embed(x)
        before = nn.functional.pad(h, (0, 0, 1, 0))[:, :-1]
        h = self.dropout(h + self.smear * before + self.pos_embed[:, : x.shape[1]])
        for block in self.blocks:
            h = block(h)
        return self.ln(h)


@lmplay.expose_runner('smeared', description='gpt2ish whose embeddings take in the token before.')
def runner(*args, **kwargs):
    return lmplay.BasicModelRunner(Smeared, *args, overrides=dict(version='smeared'), **kwargs)


def plan_for(text: str) -> dict:
    """A byte-pair vocabulary of the text's own, a small model, ten evaluations."""
    stage = {'dataset': text, 'epochs': 1, 'batch_size': 16, 'mini_batch_size': 16, 'lr': 2e-3}
    no_dropout = dict(attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0)
    return {
        'tokenizer': {'type': 'bpe', 'vocab_size': 1024},
        'model': dict(num_blocks=2, embed_dim=128, num_heads=4, max_len=128) | no_dropout,
        'stages': {'text': stage},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Compares the model of this file with gpt2ish on a text.')
    parser.add_argument('text', help='a file, a folder or a glob')
    parser.add_argument('--tokens', type=int, default=400_000, help='length of each run')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', type=Path, default=Path('compare/smeared'))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    plan = args.out / 'plan.json'
    plan.write_text(json.dumps(plan_for(str(Path(args.text).expanduser().resolve())), indent=1))
    result = lmplay.compare(
        'gpt2ish', __file__, plan=plan, budget=f'tokens={args.tokens}', seeds=args.seeds, out=args.out
    )
    print(result)
    run = result.runs['smeared'][0]
    smear = run.model(exp=__file__).smear
    print(f'The factors it learned: mean {smear.mean():.3f}, from {smear.min():.3f} to {smear.max():.3f}')
    print(lmplay.generate(run, 'The ', max_new_tokens=60, exp=__file__))


if __name__ == '__main__':
    main()
