"""The template walk-through of docs/gpt2ish.md, steps 1 to 5, as it is written there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What the walk-through leaves to its reader ("YOUR ARCHITECTURE HERE: copy from GPT2 and make changes").
ARCHITECTURE = """
        self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, max_len, embed_dim))
        self.blocks = nn.ModuleList(
            Block(max_len, num_heads, embed_dim, attn_dropout=0.1, ff_dropout=0.1) for _ in range(num_blocks)
        )
        self.special_layer = nn.Linear(embed_dim, embed_dim) if my_custom_param else nn.Identity()
        self.ln = nn.LayerNorm(embed_dim)
        self.fc = nn.Linear(embed_dim, vocab_size)

    def forward(self, x, cache=None):
        start = cached_length(cache)
        x = self.tok_embed(x) + self.pos_embed[:, start:start + x.shape[1]]
        x = self.special_layer(x)
        for i, block in enumerate(self.blocks):
            x = block(x, cache=layer_cache(cache, i))
        logits = self.fc(self.ln(x))
        return logits if cache is None else (logits[:, -1:], cache)
"""


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of the package, as a clone of one's own would be."""
    folder = tmp_path_factory.mktemp('clone')
    shutil.copytree(ROOT / 'lmplay', folder / 'lmplay', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'plans', folder / 'plans')
    return folder


def code_block(text: str, heading: str, language: str = 'python') -> str:
    section = text.split(f'### {heading}')[1].split('\n### ')[0]
    return re.search(rf'```{language}\n(.*?)```', section, re.S)[1]


def shell(clone, line, cache, timeout=120):
    """A line as it stands, with `lmp_trainer` being this copy's."""
    bin_folder = clone / 'bin'
    bin_folder.mkdir(exist_ok=True)
    script = bin_folder / 'lmp_trainer'
    script.write_text(
        f'#!{sys.executable}\nimport sys\nfrom lmplay.train.__main__ import main\nsys.exit(main())\n'
    )
    script.chmod(0o755)
    environment = os.environ | {
        'PATH': f'{bin_folder}:{os.environ["PATH"]}',
        'PYTHONPATH': str(clone),
        'LMP_DATASETS': str(cache),
        'OMP_NUM_THREADS': '1',
    }
    return subprocess.run(
        line, shell=True, cwd=clone, env=environment, capture_output=True, text=True, timeout=timeout
    )


def test_steps_1_to_5(clone, cache, corpus):
    guide = (ROOT / 'docs' / 'gpt2ish.md').read_text()
    # 1
    assert shell(clone, code_block(guide, 'Step 1: Copy the Experiment', 'bash'), cache).returncode == 0
    mine = clone / 'lmplay/exp/my_experiment'
    # 2
    model = code_block(guide, 'Step 2: Modify `model.py`')
    head, _ = model.split('        # YOUR ARCHITECTURE HERE')
    model = (
        'import torch\nfrom lmplay.modules import cached_length, layer_cache\n'
        'from lmplay.utils import to_name\n' + head + ARCHITECTURE
    )
    (mine / 'model.py').write_text(model)
    # 3
    (mine / 'versions.py').write_text(code_block(guide, 'Step 3: Update `versions.py`'))
    # 4
    with open(clone / 'lmplay/__init__.py', 'a') as file:
        file.write(code_block(guide, 'Step 4: Register in `lmplay/__init__.py`'))
    # 5
    listed = shell(clone, 'lmp_trainer --exp list | grep my_experiment', cache)
    assert listed.returncode == 0 and 'My custom experiment description' in ' '.join(listed.stdout.split()), (
        listed.stderr
    )
    assert listed.stdout.count(' my_experiment ') == 1 and ' my_experiment_large ' in listed.stdout
    described = shell(clone, 'lmp_trainer --exp my_experiment --describe', cache)
    assert (
        described.returncode == 0
        and 'special_layer' in described.stdout
        and 'my_experiment_6_1024' in described.stdout
    ), described.stderr
    # "Train it" as written trains for hours; a plan and a smaller size keep the same command short
    plan = clone / 'short.json'
    plan.write_text(
        f'{{"s": {{"dataset": "{corpus}", "steps": 2, "batch_size": 2, "validation_bytes": 300}}}}'
    )
    trained = shell(
        clone,
        f'lmp_trainer --exp my_experiment --device cpu --mini-batch-size 1 --training-plan {plan} '
        '--num-blocks 1 --embed-dim 32 --num-heads 2 --max-len 32',
        cache,
    )
    assert trained.returncode == 0 and 'Finished' in trained.stderr, trained.stderr
    assert (clone / 'runs/my_experiment-short/summary.json').is_file()


def test_without_step_4_it_is_found_all_the_same_and_a_broken_one_is_a_row(clone, cache):
    shutil.copytree(ROOT / 'lmplay/exp/gpt2ish', clone / 'lmplay/exp/quite_broken', dirs_exist_ok=True)
    (clone / 'lmplay/exp/quite_broken/model.py').write_text('def broken(:\n')
    listed = shell(clone, 'lmp_trainer --exp list', cache)
    assert listed.returncode == 0 and 'broken: SyntaxError' in ' '.join(listed.stdout.split())
    # a copy whose names were not changed is refused by name, both places shown
    shutil.copytree(ROOT / 'lmplay/exp/gpt2ish', clone / 'lmplay/exp/same_names', dirs_exist_ok=True)
    clash = shell(clone, 'lmp_trainer --exp gpt2ish --describe', cache)
    assert (
        clash.returncode == 2
        and 'gpt2ish/versions.py' in clash.stderr
        and 'same_names/versions.py' in clash.stderr
    )
    for name in ('quite_broken', 'same_names'):
        shutil.rmtree(clone / 'lmplay/exp' / name)


def test_the_quick_test_of_the_guide(clone, cache, corpus):
    """`lmp_trainer ... --validation-interval 10 --save-interval 1000000`, kept short as above."""
    plan = clone / 'short.json'
    plan.write_text(
        f'{{"s": {{"dataset": "{corpus}", "steps": 2, "batch_size": 2, "validation_bytes": 300}}}}'
    )
    out = shell(
        clone,
        'lmp_trainer --exp gpt2ish --device cpu --mini-batch-size 1 --validation-interval 10 '
        f'--save-interval 1000000 --training-plan {plan} '
        '--num-blocks 1 --embed-dim 16 --num-heads 2 --max-len 16',
        cache,
    )
    assert out.returncode == 0, out.stderr
