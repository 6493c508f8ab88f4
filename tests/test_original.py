"""What users of the original lmplay type: each works, or is refused with the name of what replaces it."""

import importlib
import os
import re
import subprocess
import sys

import pytest

import lmplay
from lmplay import original
from lmplay.errors import PlanError, UserError
from lmplay.generate.__main__ import parse as parse_generator
from lmplay.generate.__main__ import parser as generator
from lmplay.plots.__main__ import parse as parse_plotstats
from lmplay.plots.__main__ import parser as plotstats
from lmplay.train.__main__ import main as train
from lmplay.train.__main__ import make_parser, parse
from lmplay.train.plan import load_plan
from lmplay.utils import to_name

COMMANDS = [
    (original.TRAINER, make_parser, parse),
    (original.GENERATOR, generator, parse_generator),
    (original.PLOTSTATS, plotstats, parse_plotstats),
]
REFUSED = [(flag, why, *rest) for names, *rest in COMMANDS for flag, why in names.items() if why[0] != '-']


@pytest.mark.parametrize('flag, why, parser, parse', REFUSED)
@pytest.mark.parametrize('form', ['{} 3', '{}=3', '{}'])
def test_what_is_gone_is_refused_by_the_name_of_what_replaces_it(flag, why, parser, parse, form):
    with pytest.raises(UserError, match=f"'{flag}' of the original lmplay is gone") as refused:
        parse(['RUN', *form.format(flag).split()])
    known = {o for action in parser()._actions for o in action.option_strings}
    assert set(re.findall(r'--[a-z-]+', str(refused.value))) - {flag} <= known  # it names what there is


@pytest.mark.parametrize(
    'flags, stage',
    [
        ('--grad-clip 0.1', {'clip': 0.1}),
        ('--grad-clip=0.1', {'clip': 0.1}),
        ('--optimizer-warmup-steps 40', {'warmup': 40}),
        ('--disable-optimizer-warmup', {'warmup': 0}),
        ('--lr 0.1 --validation-interval 100', {'lr': 0.1, 'validation_interval': 100}),
    ],
)
def test_training_options_by_their_former_names(flags, stage):
    assert parse(flags.split()).stage == stage


def test_context_len_is_max_len():
    assert parse(['--context_len', '64']).model == {'max_len': 64}


def test_config_dumped_to_a_file(tmp_path, capsys):
    file = tmp_path / 'config.yaml'
    assert train(['--lr', '0.1', '--dump-config', str(file)]) == 0 and not capsys.readouterr().out
    assert train(['--lr', '0.1', '--dump-config']) == 0
    assert capsys.readouterr().out == file.read_text()
    assert parse(['--use-config', str(file)]).stage == {'lr': 0.1}
    assert train(['--dump-config', str(tmp_path)]) == 2


def test_a_prompt_by_itself(tmp_path):
    """lmp_generator PROMPT --model PATH; the prompt may be a file."""
    args = parse_generator(['Once upon', '--model', 'RUN', '--max-len', '7'])
    assert (args.prompt, args.model, args.checkpoint, args.max_new_tokens) == (['Once upon'], 'RUN', None, 7)
    file = tmp_path / 'prompt.txt'
    file.write_text('From a file.')
    args = parse_generator([str(file), '--model', 'RUN'])
    assert (args.prompt, args.prompt_file) == ([], [str(file)])


def test_plot_options_by_their_former_names():
    args = parse_plotstats(['--average-count', '300', '--target=a', 'RUN'])
    assert (args.smooth, args.baseline, args.runs) == (300, 'a', ['RUN'])


PLANS = (
    'default cosmopedia_v2 wiki_en_es l_wiki_en_es full_v1 full bigpretrain hugepretrain openorca '
    'tinystories orcamathword200 smoltalk_all instruction_ft l_instruction_ft pretrain all'
)


@pytest.mark.parametrize('name', PLANS.split())
def test_plans_by_their_former_names(name):
    plan = load_plan(name)
    assert (
        plan.stages and all(plan.stage(i).epochs == 1 for i in range(len(plan.stages))) or name == 'default'
    )
    for i in range(len(plan.stages)):
        for dataset in plan.stage(i).datasets:
            assert plan.source_spec(dataset) is not None or name in ('default', 'tinystories')


def test_plans_of_no_name_are_refused():
    with pytest.raises(PlanError, match='Unknown plan'):
        load_plan('wiki_en_fr')


def test_model_names():
    """As the original's utils.to_name writes them."""
    assert to_name('gpt2ish', num_blocks=3, max_len=64) == 'gpt2ish_3_64'
    assert to_name('exp1', 5, 0.1, lr=0.001) == 'exp1_50.1_0.0'
    assert to_name('v', None, a='x', b=[1, 2], c={'k': 3}, d=True) == 'v_N_x__12__3_1'


def test_an_external_package_by_the_guide(tmp_path):
    """Its layout and imports; registered by importing the package."""
    folder = tmp_path / 'src' / 'your_experiments'
    (folder / 'exp' / 'your_experiment').mkdir(parents=True)
    for part in ('exp', 'exp/your_experiment'):
        (folder / part / '__init__.py').touch()
    (folder / '__init__.py').write_text(
        'from lmplay import MODEL_RUNNERS\nimport your_experiments.exp.your_experiment.versions\n'
    )
    (folder / 'exp' / 'your_experiment' / 'model.py').write_text(
        'from lmplay.exp.gpt2ish.model import GPT2\n\n\nclass YourModel(GPT2):\n    pass\n'
    )
    (folder / 'exp' / 'your_experiment' / 'versions.py').write_text(
        'from lmplay.base.runner_list import expose_runner\n'
        'from lmplay.base.runners import BasicModelRunner\n'
        'from .model import YourModel\n\n\n'
        "@expose_runner('your_experiment', description='Your experiment description')\n"
        'def runner(*args, **kwargs):\n'
        '    return BasicModelRunner(YourModel, *args, **kwargs)\n'
    )
    code = (
        'import your_experiments\n'
        "assert 'your_experiment' in your_experiments.MODEL_RUNNERS\n"
        'from lmplay.train.__main__ import main\n'
        "options = ['--num-blocks', '1', '--embed-dim', '32', '--num-heads', '2']\n"
        "raise SystemExit(main(['--exp', 'your_experiment', '--describe', *options]))\n"
    )
    path = os.pathsep.join([str(folder.parent), str(importlib.resources.files(lmplay).parent)])
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'YourModel' in done.stdout or 'gpt2ish_1_1024' in done.stdout
