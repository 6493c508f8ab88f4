"""The peers of the training step, each as its users run it, on the same rows: nanoGPT's form, Hugging Face's,
the original's.

All have the shape of gpt2ish: exact or tanh GELU as is theirs, no dropout, an untied head of 50,257.
"""

import contextlib
import itertools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .measure import VOCAB, shape_of


def load_rows(folder: str, rows: int, device: str):
    """Batches (x, y) of `rows` packed rows, over and over."""
    tokens = np.load(Path(folder) / 'rows.npy')
    batches = [
        torch.from_numpy(tokens[i : i + rows].astype(np.int64)).to(device)
        for i in range(0, len(tokens) - rows + 1, rows)
    ]
    return itertools.cycle([(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in batches])


def autocast(device: str, dtype: str):
    return (
        torch.autocast(device.split(':')[0], dtype=torch.bfloat16)
        if dtype == 'bf16'
        else contextlib.nullcontext()
    )


# ---- nanoGPT's form: logits whole, cross-entropy over them, AdamW with decay groups, gradients clipped


class NanoBlock(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.mlp(self.ln_2(x))


class Nano(nn.Module):
    def __init__(self, *, layers: int, dim: int, heads: int, context: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, dim), nn.Embedding(context, dim)
        self.h = nn.ModuleList(NanoBlock(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, VOCAB, bias=False)

    def forward(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.h:
            h = block(h)
        logits = self.lm_head(self.ln_f(h))
        return logits, F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1), ignore_index=-1)


def run_nanogpt(meter, *, shape, context, rows, dtype, device, folder, compiled=False, **_) -> None:
    batches = load_rows(folder, rows, device)
    model = Nano(**shape_of(shape), context=context).to(device)
    groups = [
        {'params': [p for p in model.parameters() if p.ndim >= 2], 'weight_decay': 0.1},
        {'params': [p for p in model.parameters() if p.ndim < 2], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=device.startswith('cuda'))
    forward = torch.compile(model) if compiled else model

    def step():
        x, y = next(batches)
        with autocast(device, dtype):
            _, loss = forward(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return x.numel()

    meter.run(step)


# ---- Hugging Face


def gpt2(shape: str, context: int, device: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    s = shape_of(shape)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=s['layers'],
            n_embd=s['dim'],
            n_head=s['heads'],
            n_positions=context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
        )
    ).to(device)


def run_hf(meter, *, shape, context, rows, dtype, device, folder, **_) -> None:
    batches = load_rows(folder, rows, device)
    model = gpt2(shape, context, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)

    def step():
        x, _ = next(batches)
        with autocast(device, dtype):
            loss = model(input_ids=x, labels=x, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return x.numel()

    meter.run(step)


def run_hf_trainer(meter, *, shape, context, rows, dtype, device, folder, **_) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Tick(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            meter.tick(rows * context)

    tokens = np.load(Path(folder) / 'rows.npy').astype(np.int64)[:, :-1]
    data = [{'input_ids': torch.from_numpy(row), 'labels': torch.from_numpy(row)} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(Path(folder) / 'hf'),
        per_device_train_batch_size=rows,
        max_steps=10**6,
        learning_rate=6e-4,
        bf16=dtype == 'bf16',
        use_cpu=device == 'cpu',
        report_to=[],
        save_strategy='no',
        disable_tqdm=True,
    )
    Trainer(
        model=gpt2(shape, context, device), args=arguments, train_dataset=data, callbacks=[Tick()]
    ).train()


# ---- the original lmplay's way of working: a list of dicts of text goes into each step


class OriginalBlock(nn.Module):
    def __init__(self, dim: int, heads: int, context: int):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.register_buffer('mask', torch.tril(torch.ones(context, context))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        h = self.ln1(x)
        q, k, v = (
            layer(h).view(B, T, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / (D // self.heads) ** 0.5
        scores = scores.masked_fill(self.mask[:, :, :T, :T] == 0, float('-inf'))
        y = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, D)
        x = x + self.proj(y)
        return x + self.ff(self.ln2(x))


class Original(nn.Module):
    """Tokenizes, pads, computes the loss token by token, averages it row by row,
    and decodes what it predicts, all in the model."""

    def __init__(self, *, layers: int, dim: int, heads: int, context: int, tokenizer):
        super().__init__()
        self.tokenizer, self.context = tokenizer, context
        self.tok_embed = nn.Embedding(VOCAB, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, context, dim))
        self.blocks = nn.Sequential(*(OriginalBlock(dim, heads, context) for _ in range(layers)))
        self.ln = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, VOCAB)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.ln(self.blocks(self.tok_embed(x) + self.pos_embed[:, : x.shape[1]])))

    def train_prompts(self, prompts: list[dict]) -> tuple[list[str], Tensor, int]:
        device, eot = self.pos_embed.device, self.tokenizer.eot_token
        tokens = [
            torch.tensor(
                [eot, *self.tokenizer.encode(p['prompt'] + p['truth']), eot][: self.context + 1],
                device=device,
            )
            for p in prompts
        ]
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=eot)
        logits = self(padded[:, :-1])
        losses = F.cross_entropy(
            logits.transpose(1, 2), padded[:, 1:], reduction='none'
        )  # of the padding too
        lengths = [len(t) - 1 for t in tokens]
        loss = sum(row[:n].sum() / n for row, n in zip(losses, lengths)) / len(lengths)
        predicted = logits.argmax(-1)
        return (
            [self.tokenizer.decode(row[:n].tolist()) for row, n in zip(predicted, lengths)],
            loss,
            sum(lengths),
        )


def run_original(meter, *, shape, context, rows, dtype, device, folder, variable=False, **_) -> None:
    from rapidfuzz.distance import Levenshtein

    from lmplay.tokenizers import get_tokenizer

    texts = json.loads((Path(folder) / ('documents.json' if variable else 'texts.json')).read_text())
    batches = itertools.cycle(
        [
            [{'prompt': '', 'truth': text} for text in texts[i : i + rows]]
            for i in range(0, len(texts) - rows + 1, rows)
        ]
    )
    model = Original(**shape_of(shape), context=context, tokenizer=get_tokenizer('gpt2')).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=False)

    def step():
        prompts = next(batches)
        optimizer.zero_grad()
        with autocast(device, dtype):
            results, loss, tokens = model.train_prompts(prompts)
        loss.backward()
        optimizer.step()
        loss.item()
        for result, prompt in zip(results, prompts):
            words = prompt['truth'].split(), result.split()
            Levenshtein.distance(*words) / max(1, *map(len, words))
        return tokens

    meter.run(step)
