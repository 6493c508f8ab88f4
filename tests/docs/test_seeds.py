"""The five documents that lmplay was asked for in: every command, path, parameter and JSON in them, with its
result.

Each is quoted here as it is written there and checked by what the quotation says; `pytest -v` lists them.
The result is part of a test's name:

run      as it is written, with fewer steps and, where the document leaves it open, a smaller model
parsed   every option and name is read; what needs a GPU or a network is not started
stands   the path, parameter or figure is as documented
study    a path or command of the published study; the check names what stands for it here
changed  not as documented; docs/ says so at the place
"""

import contextlib
import functools
import inspect
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmplay.base.base_model import LMOutput
from lmplay.base.runner_list import find_runner
from lmplay.checks import check_contract
from lmplay.exp.gpt2_moe import verify
from lmplay.exp.gpt2ish.model import GPT2
from lmplay.generate.__main__ import main as lmp_generator
from lmplay.train.__main__ import main as lmp_trainer
from lmplay.train.plan import load_plan

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'gpt2ish.md'
TINY = '--num-blocks 1 --embed-dim 16 --max-len 16'.split()  # for a copy of gpt2ish: minutes otherwise
SHORT = '--steps 2 --batch-size 2 --validation-bytes 300 --quiet'.split()
CLI = {'lmp_trainer': lmp_trainer, 'lmp_generator': lmp_generator}


@dataclass(eq=False)
class World:
    """Where the commands run: a copy of the package, as a clone of one's own would be, and some text."""

    folder: Path
    corpus: Path
    cache: Path

    def call(self, line: str, *more: str) -> str:
        """A command of lmplay in this process, with options added; what it printed."""
        name, *options = line.replace('\\\n', ' ').split()
        out = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            assert CLI[name]([*options, *more]) == 0, out.getvalue()
        return out.getvalue()

    def parse(self, line: str) -> str:
        """The options of a command that is not run, as --dump-config prints them."""
        return self.call(line, '--dump-config')

    def shell(self, line: str) -> str:
        """A line as it stands in a shell where `lmp_trainer` is the copy's; what it printed."""
        script = self.folder / 'bin' / 'lmp_trainer'
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f'#!{sys.executable}\nimport sys\nfrom lmplay.train.__main__ import main\nsys.exit(main())\n'
        )
        script.chmod(0o755)
        own = {'PATH': f'{script.parent}:{os.environ["PATH"]}', 'PYTHONPATH': str(self.folder)}
        own |= {'LMP_DATASETS': str(self.cache), 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope='module')
def world(tmp_path_factory, corpus, cache):
    folder = tmp_path_factory.mktemp('clone')
    shutil.copytree(ROOT / 'lmplay', folder / 'lmplay', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'plans', folder / 'plans')
    return World(folder, corpus, cache)


ITEMS = []


def seed(document: str, result: str, *quotes: str):
    """Registers a check of quotations from a document; it runs once, though each of them is listed."""

    def register(check):
        check = check if hasattr(check, 'cache_info') else functools.cache(check)
        for quote in quotes:
            name = ' '.join(quote.split())[:60].replace('/', '|')
            ITEMS.append(pytest.param(document, quote, check, id=f'{document} {result}: {name}'))
        return check

    return register


# ---- 000, 001: which model, which layers


@seed('000', 'stands', '**GPT-2 Small** chosen', 'GPT-2 Small (124M)')
def base_model(world):
    runner = find_runner('gpt2_dense').function()
    assert runner.training['init_from'] == 'pretrained:gpt2'
    assert runner.build('meta').total_parameters() // 10**6 == 124


@seed('000', 'run', '`deepcopy(block.mlp)`')
def warm_start(world):
    runner = find_runner('gpt2_moe').function(
        num_blocks=2, embed_dim=16, moe_layers='last 1', max_len=32, tokenizer='bytes'
    )
    dense = (
        find_runner('gpt2_dense').function(num_blocks=2, embed_dim=16, max_len=32, tokenizer='bytes').build()
    )
    routed = runner.build()
    routed.import_pretrained(dense)
    w1, b1, w2, b2 = routed.experts()[0].weights  # (16, 64) and (64, 16): the shape tells the orientation
    mlp = [p.detach() for p in dense.blocks[1].mlp.parameters()]
    for expert in range(len(w1)):
        for ours, theirs in zip((w1, b1, w2, b2), mlp, strict=True):
            theirs = theirs if ours[expert].shape == theirs.shape else theirs.t()
            assert (
                ours[expert] - theirs
            ).norm() <= 0.01 * theirs.norm()  # a perturbation breaks the symmetry


@seed('001', 'stands', '**Last 4 layers (8-11)** chosen', 'Option B: Last 4 Layers (8, 9, 10, 11)')
def last_four(world):
    assert list(find_runner('gpt2_moe').function().build('meta').moe_layers) == [8, 9, 10, 11]


@seed('001', 'stands', 'Option A: All 12 Layers', 'Option C: Alternating Layers')
def other_layers(world):
    for choice, count in (('all', 12), ('alternating', 6)):
        assert len(find_runner('gpt2_moe').function(moe_layers=choice).build('meta').moe_layers) == count


@seed('001', 'stands', 'dense baseline, no-LB collapse, top-2 directional')
def ablations(world):
    for name in ('gpt2_dense', 'gpt2_moe_nolb', 'gpt2_moe_top2'):
        find_runner(name)


# ---- 002: the verification


@seed(
    '002',
    'study',
    'python moe-emergence/verify_gpt2_integration.py',
    '`moe-emergence/verify_gpt2_integration.py`',
)
@seed('002', 'run', '**Tests run:** 10', '### Warm-Start Parity (Relative Error)', '### Attention Masking')
def verification(world):
    """lmp_verify_moe: with random weights, as the pretrained ones must be fetched."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert verify.main(['--tiny']) == 0, out.getvalue()


@seed('002', 'study', '`docs/experiments/run-001-gpt2-integration-verification.md`')
def verification_log(world):
    assert 'lmp_verify_moe' in (ROOT / 'lmplay/exp/gpt2_moe/README.md').read_text()


@seed(
    '002',
    'stands',
    'base_model: gpt2 (124M)',
    'moe_layers: [8, 9, 10, 11]',
    'num_experts: 8',
    'top_k: 1',
    'noise_std: 0.1',
    'seed: 0',
)
def verification_model(world):
    asked = dict(moe_layers=[8, 9, 10, 11], num_experts=8, top_k=1, noise_std=0.1)
    default = find_runner('gpt2_moe').function().parameters
    assert {k: v for k, v in asked.items() if k != 'moe_layers'}.items() <= default.items()
    assert list(find_runner('gpt2_moe').function(**asked).build('meta').moe_layers) == asked['moe_layers']
    assert 'seed' not in default and load_plan('moe_emergence').seed == 0


# ---- 003: the baseline and the template

SIGNATURE = dict(max_len=1024, num_heads=12, num_blocks=6, embed_dim=768)
SIGNATURE |= dict(attn_dropout=0.1, ff_dropout=0.1, embed_dropout=0.1, version='gpt2ish')


@seed(
    '003',
    'stands',
    '`lmplay/exp/gpt2ish/`',
    '### Model File: `model.py`',
    '### Runner File: `versions.py`',
    '`lmplay/__init__.py`',
)
def paths(world):
    for name in ('exp/gpt2ish/model.py', 'exp/gpt2ish/versions.py', 'exp/gpt2ish/__init__.py', '__init__.py'):
        assert (ROOT / 'lmplay' / name).is_file()


@seed(
    '003',
    'stands',
    'lmplay/exp/your_experiment/__init__.py',
    'lmplay/exp/your_experiment/model.py',
    'lmplay/exp/your_experiment/versions.py',
    'generate/__main__.py',
)
def files_of_an_experiment(world):
    for name in ('__init__.py', 'model.py', 'versions.py', 'README.md'):
        assert (ROOT / 'lmplay/exp/gpt2ish' / name).is_file()
    assert (ROOT / 'lmplay/generate/__main__.py').is_file()


@seed('003', 'stands', *(f'- `{name}`:' for name in SIGNATURE), '- `**ignore`:')
def signature(world):
    parameters = inspect.signature(GPT2.__init__).parameters
    assert {name: parameters[name].default for name in SIGNATURE} == SIGNATURE
    assert parameters['ignore'].kind is inspect.Parameter.VAR_KEYWORD
    assert GPT2(**SIGNATURE | dict(num_blocks=1, embed_dim=24), unknown=1).max_len == 1024


@seed('003', 'stands', 'def forward(self, x: torch.Tensor, cache: Optional[List] = None):')
def forward_pass(world):
    model = GPT2(max_len=16, num_heads=2, num_blocks=1, embed_dim=16).eval()
    x = torch.zeros(2, 5, dtype=torch.int64)
    assert model(x).shape == (2, 5, 50257)
    _, cache = model(x, cache=[])
    logits, cache = model(x[:, :1], cache=cache)
    assert logits.shape == (2, 1, 50257) and len(cache) == 1


SHAPES = {
    'gpt2ish_med': ('24-layer, 1024 embedding, 16 heads', (24, 1024, 16)),
    'gpt2ish_large': ('36-layer, 1280 embedding, 20 heads', (36, 1280, 20)),
    'test_runner': ('Tiny model (2 heads, 64 dim)', (None, 64, 2)),
    's_gpt2ish': ('18 layers, 288 embedding, 6 heads', (18, 288, 6)),
}


@seed('003', 'stands', *(f'- `{name}`: ' for name in SHAPES), *(text for text, _ in SHAPES.values()))
def versions(world):
    for name, (_, shape) in SHAPES.items():
        p = find_runner(name).function().parameters
        found = p['num_blocks'], p['embed_dim'], p['num_heads']
        assert all(expected in (None, own) for expected, own in zip(shape, found))


@seed('003', 'run', 'cp -r lmplay/exp/gpt2ish lmplay/exp/my_experiment')
def step_1(world):
    world.shell('cp -r lmplay/exp/gpt2ish lmplay/exp/my_experiment')


MODEL = """# lmplay/exp/my_experiment/model.py
from lmplay.base.base_model import LMBase
from lmplay.modules import Block
import torch.nn as nn
import tiktoken

class MyModel(LMBase):
    def __init__(self,
                 max_len=1024,
                 num_heads=12,
                 num_blocks=6,
                 embed_dim=768,
                 # Your custom parameters
                 my_custom_param=True,
                 **ignore):
        super().__init__(to_name('my_experiment',
                                 num_blocks=num_blocks,
                                 max_len=max_len),
                        max_len=max_len,
                        num_heads=num_heads,
                        num_blocks=num_blocks,
                        embed_dim=embed_dim,
                        my_custom_param=my_custom_param)

        self.tokenizer = tiktoken.get_encoding("gpt2")
        vocab_size = self.tokenizer.n_vocab
"""
# "YOUR ARCHITECTURE HERE", with the document's special layer. The document's code lacks one import.
ARCHITECTURE = """
        self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        self.special_layer = nn.Linear(embed_dim, embed_dim)
        self.blocks = nn.ModuleList(Block(max_len, num_heads, embed_dim) for _ in range(num_blocks))
        self.fc = nn.Linear(embed_dim, vocab_size)

    def forward(self, x, cache=None):
        x = self.special_layer(self.tok_embed(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(x)
"""


@seed(
    '003', 'run', MODEL, 'x = self.special_layer(x)', 'for block in self.blocks:\n    x = block(x, cache=...)'
)
def step_2(world):
    step_1(world)
    code = f'from lmplay.utils import to_name\n{MODEL}{ARCHITECTURE}'
    (world.folder / 'lmplay/exp/my_experiment/model.py').write_text(code)


VERSIONS = """# lmplay/exp/my_experiment/versions.py
from lmplay.base.base_model import BasicModelRunner
from .model import MyModel
from lmplay.base.runner_list import expose_runner

@expose_runner('my_experiment',
               description='My custom experiment description')
def runner(*args, **kwargs):
    return BasicModelRunner(MyModel,
                           *args,
                           overrides=dict(),
                           **kwargs)

# Optional: Add other versions
@expose_runner('my_experiment_large',
               description='Larger version of my experiment')
def runner_large(*args, **kwargs):
    return BasicModelRunner(MyModel,
                           *args,
                           overrides=dict(num_blocks=24,
                                         embed_dim=1024,
                                         num_heads=16),
                           **kwargs)
"""


@seed('003', 'run', VERSIONS)
def step_3(world):
    step_2(world)
    (world.folder / 'lmplay/exp/my_experiment/versions.py').write_text(VERSIONS)


@seed('003', 'run', 'import lmplay.exp.my_experiment.versions')
def step_4(world):
    step_3(world)
    with open(world.folder / 'lmplay/__init__.py', 'a') as file:
        file.write('\nimport lmplay.exp.my_experiment.versions\n')


@seed('003', 'run', 'lmp_trainer --exp list | grep my_experiment')
def step_5_list(world):
    step_4(world)
    listed = world.shell('lmp_trainer --exp list | grep my_experiment')
    assert ' my_experiment ' in listed and ' my_experiment_large ' in listed


@seed('003', 'run', 'lmp_trainer --exp my_experiment --describe')
def step_5_describe(world):
    step_4(world)
    described = world.shell('lmp_trainer --exp my_experiment --describe')
    assert 'special_layer' in described and 'my_experiment_6_1024' in described


@seed('003', 'run', 'lmp_trainer --exp my_experiment --device cpu --mini-batch-size 1')
def step_5_train(world):
    step_4(world)
    line = 'lmp_trainer --exp my_experiment --device cpu --mini-batch-size 1'
    world.shell(' '.join([line, *TINY, *SHORT, '--dataset', str(world.corpus)]))
    assert (world.folder / 'runs/my_experiment-default/summary.json').is_file()


@seed('003', 'stands', 'self.num_heads = 8', 'Use 2048 hidden size in FFN')
def fewer_heads(world):
    assert GPT2(num_heads=8, num_blocks=1).blocks[0].attn.num_heads == 8


@seed('003', 'run', 'x = self.blocks_train(x)', 'x = self.blocks_inference(x, cache)')
def conditional_computation(world):
    class TwoPaths(GPT2):
        def __init__(self, max_len=16, num_heads=2, num_blocks=1, embed_dim=16):
            super().__init__(max_len, num_heads, num_blocks, embed_dim, embed_dropout=0.0)
            self.paths = []

        def features(self, x, cache=None):
            self.paths.append(self.training)
            return super().features(x, cache)

    model, x = TwoPaths(), torch.zeros(1, 4, dtype=torch.int64)
    model.train()(x)
    model.eval()(x)
    assert model.paths == [True, False]


QUICK = """lmp_trainer --exp gpt2ish --device cpu --mini-batch-size 1 \\
  --validation-interval 10 --save-interval 1000000"""
STANDARD = """lmp_trainer --exp gpt2ish --device cuda --amp \\
  --batch-size 50 --mini-batch-size 4 \\"""
MULTI = """lmp_trainer --exp gpt2ish --device cuda --amp \\
  --training-plan my_plan.json"""
PLAN = """cat > my_plan.json << 'EOF'
{
  "stage1_pretrain": {
    "dataset": "wikipedia",
    "epochs": 1
  },
  "stage2_finetune": {
    "dataset": "wikitext",
    "epochs": 1
  }
}
EOF"""


@seed('003', 'run', QUICK)
def quick_test(world):
    world.call(QUICK, *TINY, *SHORT, '--dataset', str(world.corpus))
    assert (world.folder / 'runs/gpt2ish-default/summary.json').is_file()


@seed('003', 'parsed', STANDARD, '--validation-interval 100 --save-interval 10000')
def standard_training(world):
    config = world.parse(f'{STANDARD}\n  --validation-interval 100 --save-interval 10000')
    for line in ('amp: true', 'batch_size: 50', 'device: cuda', 'mini_batch_size: 4', 'save_interval: 10000'):
        assert line in config


@seed('003', 'run', PLAN)
def plan_file(world):
    world.shell(PLAN)
    plan = load_plan(str(world.folder / 'my_plan.json'))
    assert list(plan.stages) == ['stage1_pretrain', 'stage2_finetune']
    stages = [plan.stage(i) for i in range(2)]
    assert [(s.dataset, s.epochs) for s in stages] == [('wikipedia', 1), ('wikitext', 1)]


@seed('003', 'parsed', MULTI)
def multi_stage_training(world):
    plan_file(world)
    assert 'training_plan: my_plan.json' in world.parse(MULTI)
    assert 'gpt2ish_6_1024' in world.call(MULTI.replace('--device cuda', '--device cpu'), '--describe')


@seed('003', 'changed', 'On Wikipedia (default):')
def default_dataset(world):
    assert load_plan('default').stage(0).dataset == 'embedded'
    assert load_plan('wikipedia').stage(0).dataset == 'wikipedia'
    assert 'It is not the default, as it once was' in PAGE.read_text()


@seed('003', 'changed', '- Initial loss: ~4.5 (vocab size ≈ 50k)')
def initial_loss(world):
    model = GPT2(max_len=32, num_heads=2, num_blocks=1, embed_dim=32)
    x = torch.randint(0, 50257, (4, 32))
    loss = F.cross_entropy(model(x).flatten(0, 1), torch.randint(0, 50257, (128,)))
    assert loss.item() == pytest.approx(math.log(50257), abs=0.1)
    page = PAGE.read_text()
    assert '<del>Initial loss: ~4.5' in page and 'The initial loss is ~10.8' in page


@seed('003', 'stands', '- After 10k samples: ~4.0-4.2', '- 6 layers: Mediocre, mostly learns local patterns')
def expectations(world):
    """Of training on Wikipedia; the page repeats them as the estimates they are."""
    page = PAGE.read_text()
    assert '- After 10k samples: ~4.0-4.2' in page and '- 6 layers: Mediocre' in page
    assert 'loose estimates' in page


SMALL = """@expose_runner('gpt2ish_small',
               description='2-layer, 256-dim model for fast testing')
def runner_small(*args, **kwargs):
    return BasicModelRunner(GPT2,
                           *args,
                           overrides=dict(num_blocks=2,
                                         embed_dim=256,
                                         num_heads=4),
                           **kwargs)"""
WITH_LOSS = """@expose_runner('gpt2ish_with_aux_loss',
               description='GPT2ish with auxiliary loss head')
def runner_aux(*args, **kwargs):
    return BasicModelRunner(GPT2WithAuxLoss,  # Custom class
                           *args,
                           overrides=dict(),
                           **kwargs)"""
CUSTOM_CLASS = """
from lmplay.base.base_model import BasicModelRunner, LMOutput
from lmplay.base.runner_list import expose_runner
from lmplay.exp.gpt2ish.model import GPT2

class GPT2WithAuxLoss(GPT2):
    def features(self, x, cache=None):
        h = super().features(x, cache)
        return LMOutput(features=h, losses={'size': (h.square().mean(), 1e-4)})

"""


def built_from(code: str, name: str, folder: Path):
    """The model of a runner that `code` exposes under `name`, tiny; the code is a versions.py of its own."""
    file = folder / f'of_{name}' / 'versions.py'
    file.parent.mkdir()
    file.write_text(code)
    small = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=16, tokenizer='bytes')
    return find_runner(f'{file}:{name}').function(**small).build()


@seed('003', 'run', SMALL)
def smaller_model(world):
    name, code = 'gpt2ish_small', CUSTOM_CLASS + SMALL
    assert find_contract_faults(built_from(code, name, world.folder)) == []
    parameters = find_runner(name).function().parameters
    assert (parameters['num_blocks'], parameters['embed_dim'], parameters['num_heads']) == (2, 256, 4)


@seed('003', 'run', WITH_LOSS)
def auxiliary_loss(world):
    model = built_from(CUSTOM_CLASS + WITH_LOSS, 'gpt2ish_with_aux_loss', world.folder)
    output = model(torch.zeros(1, 4, dtype=torch.int64))
    assert isinstance(output, LMOutput) and output.losses['size'][1] == 1e-4
    assert find_contract_faults(model) == []


def find_contract_faults(model) -> list[str]:
    return [f'{found.check}: {found.problem}' for found in check_contract(model) if found.problem]


@seed(
    '003',
    'changed',
    '# Copy GPT2 to causal_gpt2.py',
    '# Modify attention mask to allow all positions to attend to all positions',
    '# Create new runner for it',
)
def non_causal_model(world):
    """The page's example stands for the three comments; it declares itself non-causal, and is one."""
    section = PAGE.read_text().split('### Create a Non-Causal Model')[1]
    code = re.search(r'```python\n(.*?)```', section, re.S)[1].replace(
        'from .model', 'from lmplay.exp.gpt2ish.model'
    )
    code += '@expose_runner("non_causal_gpt2")\ndef runner(*args, **kwargs):\n'
    code += '    return BasicModelRunner(NonCausalGPT2, *args, **kwargs)\n'
    model = built_from(CUSTOM_CLASS + code, 'non_causal_gpt2', world.folder).eval()
    x = torch.zeros(1, 8, dtype=torch.int64)
    changed = F.pad(x[:, :7], (0, 1), value=5)
    assert not torch.allclose(model(x)[:, 0], model(changed)[:, 0])
    assert model.causal is False and find_contract_faults(model) == []


@seed('003', 'run', '`--describe`', '`--check-grads`', '`--num-blocks 2 --embed-dim 128`', '`--lr 0.001`')
def debugging(world):
    line = 'lmp_trainer --exp gpt2ish --num-blocks 2 --embed-dim 128'
    described = json.loads(world.call(line, '--describe', '--json'))
    assert described['hyperparameters']['num_heads'] == 2
    more = '--max-len 16 --lr 0.001 --check-grads --device cpu --run-dir runs/debugging'.split()
    world.call(line, *more, *SHORT, '--dataset', str(world.corpus))


@seed('003', 'run', 'Reduce generation temperature (in generate/__main__.py)')
def cooler_generation(world):
    debugging(world)
    options = '--device cpu --temperature 0.5 --prompt Once --max-new-tokens 4'.split()
    assert 'Once' in world.call('lmp_generator', str(world.folder / 'runs/debugging'), *options)


@seed('003', 'stands', '1. Reduce `mini_batch_size`', '2. Reduce `max_len`', '3. Reduce `embed_dim`')
def less_memory(world):
    options = '--mini-batch-size 1 --max-len 8 --embed-dim 16'
    config = world.parse(f'lmp_trainer --exp gpt2ish {options}')
    assert all(text in config for text in ('mini_batch_size: 1', 'max_len: 8', 'embed_dim: 16'))


@seed('003', 'stands', '[Architecture](./architecture.md)', '[Models & Runners](./models.md)')
def linked_pages(world):
    page = PAGE.read_text()
    for name in ('architecture.md', 'models.md'):
        assert f'(./{name})' in page and (ROOT / 'docs' / name).is_file()


# ---- 004: SoME against its baseline


@seed('004', 'stands', 'pip install torch datasets transformers huggingface_hub tokenizers matplotlib')
def requirements(world):
    setup = (ROOT / 'setup.py').read_text()
    for name in 'torch datasets transformers huggingface_hub tokenizers matplotlib'.split():
        assert f"'{name}>=" in setup


SOME = dict(num_experts=128, d_ffn=1536, top_k=8, alpha=0.015, beta=0.001, delta=0.001, theta_percentile=0.05)
SOME |= dict(warmup_steps=400, ema_decay=0.995, init='sparse', train_temperature=1.0, eval_temperature=0.5)


@seed(
    '004',
    'stands',
    '128 experts, `d_ffn=1536`, `top_k=8`, sparse initialization, `alpha=0.015`, `beta=0.001`, `delta=0.001`',
    '`theta_percentile=0.05`, warmup of 400 steps, and `ema_decay=0.995`',
    '8 layers, `d_model=512`, 8 attention heads, and `seq_len=512`',
    '≈18.9M of 1.63B parameters',
    'training temperature 1.0 (eval temperature 0.5)',
)
def some_model(world):
    model = find_runner('some').function().build('meta')
    shape = dict(num_blocks=8, embed_dim=512, num_heads=8, max_len=512)
    assert model.hyperparameters.items() >= (SOME | shape).items()
    figures = json.loads(world.call('lmp_trainer --exp some --describe --json'))
    assert (figures['trainable_parameters'], figures['total_parameters']) == (18_919_424, 1_631_629_312)
    assert find_runner('some_baseline').function().build('meta').d_ffn == 2048


@seed(
    '004',
    'stands',
    'A universal 8,192-vocab BPE tokenizer trained on 20k streaming TinyStories samples',
    '`[UNK]`, `[PAD]`, and `[EOS]` tokens',
    '[`roneneldan/TinyStories`](https://huggingface.co/datasets/roneneldan/TinyStories)',
    '4 epochs, batch size 24, AdamW with learning rate `4e-4` (betas 0.9/0.95, weight decay 0.1)',
    'gradient clipping at 1.0',
)
def some_protocol(world):
    plan = load_plan('some_vs_gpt2')
    tokenizer, stage = plan.tokenizer, plan.stage(0)
    assert (tokenizer['vocab_size'], tokenizer['documents']) == (8192, 20_000)
    assert tokenizer['special_tokens'] == ['[UNK]', '[PAD]', '[EOS]']
    spec = plan.source_spec(stage.dataset)
    assert (spec['loader'], spec['limit'], spec['validation_limit']) == ('tinystories', 20_000, 5_000)
    assert (stage.epochs, stage.batch_size, stage.optimizer, stage.lr) == (4, 24, 'adamw', 4e-4)
    assert (stage.betas, stage.weight_decay, stage.schedule, stage.clip) == ((0.9, 0.95), 0.1, 'cosine', 1.0)


@seed(
    '004',
    'study',
    "get_config(architecture='some_candidate', dataset_name='tinystories')",
    "`'transformer_baseline'`",
    '`main(config)`',
    '(`torch.cuda.amp`)',
    '`torch.backends.cudnn.benchmark`',
    '`some-vs-gpt2-code.pdf`',
    '[`some-vs-gpt2-code.pdf`](some-vs-gpt2-code.pdf)',
    '[`some-vs-gpt2-results.pdf`](some-vs-gpt2-results.pdf)',
)
def some_notebook(world):
    """The notebook's two configurations are two versions with one plan."""
    for name in ('some', 'some_baseline'):
        config = world.parse(f'lmp_trainer --exp {name} --training-plan some_vs_gpt2 --amp --device cuda')
        assert 'training_plan: some_vs_gpt2' in config


@seed(
    '004',
    'run',
    'a metrics PNG and `summary.txt` are written to the run directory',
    'middle-layer expert Gini and Shannon entropy',
)
def some_run(world):
    run = world.folder / 'runs' / 'some'
    line = f'lmp_trainer --exp some --training-plan some_vs_gpt2_small --dataset {world.corpus}'
    tiny = '--embed-dim 32 --num-heads 2 --max-len 32 --num-experts 8 --top-k 2 --device cpu'.split()
    world.call(line, *tiny, *SHORT, '--run-dir', str(run))
    summary = (run / 'summary.txt').read_text()
    for name in ('perplexity', 'gini_middle', 'entropy_middle'):
        assert name in summary
    assert (run / 'curves.png').stat().st_size > 1000


@seed(
    '004',
    'stands',
    'Best validation loss 1.0187 (perplexity 2.77)',
    'Best validation loss 0.8720 (perplexity 2.39)',
)
def some_figures(world):
    """The full runs need a GPU; the README holds the figures and what they count."""
    readme = (ROOT / 'lmplay/exp/some/README.md').read_text()
    assert '1.0187 | 2.77' in readme and '0.8720 | 2.39' in readme


@pytest.mark.pictures
@pytest.mark.parametrize('document, quote, check', ITEMS)
def test_what_the_documents_show(document, quote, check, world):
    check(world)


# ---- nothing is left out


@pytest.fixture(scope='session')
def documents() -> dict[str, str]:
    folder = Path(os.environ.get('LMPLAY_TEST_SEEDS', ROOT.parent / 'shared' / 'seeds'))
    if not folder.is_dir():
        pytest.skip('the documents are not here; LMPLAY_TEST_SEEDS names their folder')
    return {file.name[:3]: file.read_text(encoding='utf-8') for file in sorted(folder.glob('00*.txt'))}


def plain(text: str) -> str:
    """Without what a quotation may leave out: line breaks, indentation, continued lines."""
    return ' '.join(text.replace('\\\n', ' ').replace('\\', ' ').split())


def test_every_quotation_is_in_its_document(documents):
    for document, quote, _ in (item.values for item in ITEMS):
        assert plain(quote) in plain(documents[document]), quote


def shown(text: str) -> set[str]:
    """Commands, options, paths, parameters and JSON that a document shows."""
    found = set()
    for language, block in re.findall(r'```(\w+)\n(.*?)```', text, re.S):
        if language in ('bash', 'json'):
            found |= {line.strip() for line in block.splitlines() if line.strip() and line[0] != '#'}
        elif language == 'yaml':
            found |= {line.strip() for line in block.splitlines() if not line.startswith('note:')}
    inline = re.sub(r'```.*?```', '', text, flags=re.S)
    codes = set(re.findall(r'`([^`\n]+)`', inline)) - {
        'loss_type=None'
    }  # the last from a warning that was logged
    found |= {code for code in codes if re.search(r'[/.=(]|--|_', code)}
    return found | set(re.findall(r'\]\((\./\S+\.md)\)', inline))


def test_everything_that_the_documents_show_is_quoted(documents):
    known = {
        document: plain('\n'.join(i.values[1] for i in ITEMS if i.values[0] == document))
        for document in documents
    }
    missing = {
        (d, what) for d, text in documents.items() for what in shown(text) if plain(what) not in known[d]
    }
    assert not missing
