"""lmp_generator as a user runs it, on a model that lmp_trainer trained."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lmplay
from lmplay.generate.__main__ import main, read_prompt
from lmplay.generate.generator import generate
from lmplay.runs.load import load_model
from lmplay.tokenizers import as_tokenizer
from lmplay.train.__main__ import main as train

MODEL = [
    '--exp',
    'test_runner',
    '--tokenizer',
    'bytes',
    '--device',
    'cpu',
    '--num-blocks',
    '1',
    '--embed-dim',
    '32',
    '--num-heads',
    '2',
    '--max-len',
    '32',
    '--quiet',
]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run directory; its model says much the same always, in characters of several bytes."""
    folder = tmp_path_factory.mktemp('generator')
    (folder / 'text.txt').write_text('Größe 漢字 😀 ' * 400, encoding='utf-8')
    (folder / 'plan.json').write_text(
        json.dumps(
            {
                'datasets': {'mine': {'loader': 'text', 'path': str(folder / 'text.txt')}},
                'stages': {
                    'only': {
                        'dataset': 'mine',
                        'steps': 150,
                        'batch_size': 8,
                        'mini_batch_size': 8,
                        'row_length': 32,
                        'lr': 0.01,
                        'validation_interval': 800,
                        'validation_bytes': 600,
                    }
                },
            }
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMP_DATASETS', str(folder / 'cache'))
        assert (
            train([*MODEL, '--training-plan', str(folder / 'plan.json'), '--run-dir', str(folder / 'run')])
            == 0
        )
    return folder / 'run'


def out(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_text_follows_from_the_checkpoint_alone(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = out(capsys, trained, '--prompt', 'Größe ', '--temperature', 0, '--max-new-tokens', 60)
    model, _ = load_model(trained)
    tokenizer = as_tokenizer(model.tokenizer)
    expected = generate(
        model, [tokenizer.encode('Größe ')], max_new_tokens=60, temperature=0, stop_token=tokenizer.eot_token
    )[0]
    assert text == 'Größe ' + tokenizer.decode(expected) + '\n'
    assert '漢字 😀' in text  # learned, and streamed in whole characters
    assert (
        out(capsys, '--model', trained, '--prompt', 'Größe ', '--temperature', 0, '--max-new-tokens', 60)
        == text
    )
    assert out(
        capsys, trained / 'checkpoints' / 'last', '--prompt', 'Größe ', '--max-new-tokens', 5
    ).startswith('Größe ')


def test_seeds_and_samples(trained, capsys):
    def texts(seed):
        lines = out(
            capsys,
            trained,
            '--prompt',
            'a',
            '--prompt',
            'Größe',
            '--num-samples',
            2,
            '--temperature',
            2,
            '--max-new-tokens',
            20,
            '--json',
            '--seed',
            seed,
        ).splitlines()
        return [json.loads(line) for line in lines]

    first = texts(1)
    assert first == texts(1) != texts(2)
    assert [(r['prompt'], r['sample']) for r in first] == [('a', 0), ('a', 1), ('Größe', 0), ('Größe', 1)]
    assert first[0]['text'] != first[1]['text'] and all(r['tokens'] <= 20 for r in first)


def test_several_prompts_are_shown_with_headings(trained, capsys):
    text = out(
        capsys, trained, '--prompt', 'Grö', '--prompt', '漢', '--temperature', 0, '--max-new-tokens', 9
    )
    assert re.fullmatch(r'--- prompt 1, sample 1\nGrö.*\n--- prompt 2, sample 1\n漢.*\n', text, re.DOTALL)


def test_prompts_from_files_and_standard_input(trained, command, tmp_path):
    (tmp_path / 'prompt.txt').write_bytes('Größe 漢\r\n'.encode())
    from_file = command('generate', trained, '--prompt-file', 'prompt.txt', '--max-new-tokens', 12)
    from_pipe = command('generate', trained, '--prompt-file', '-', '--max-new-tokens', 12, input='Größe 漢\n')
    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout == from_pipe.stdout and from_file.stdout.startswith('Größe 漢')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['', '\n', '\r\n'])
def test_a_prompt_is_read_as_training_text_is(tmp_path, encoding, end):
    (tmp_path / 'prompt.txt').write_bytes(f'Größe\n\n漢{end}'.encode(encoding))
    assert read_prompt(str(tmp_path / 'prompt.txt')) == 'Größe\n\n漢'


def test_mixed_precision(trained, capsys):
    greedy = ['--prompt', 'Größe ', '--temperature', 0, '--max-new-tokens', 12]
    assert out(capsys, trained, *greedy, '--amp') == out(capsys, trained, *greedy)  # well learned, so equal


def test_a_temperature_near_zero_is_zero(trained, capsys):
    assert out(capsys, trained, '--prompt', 'a', '--temperature', '1e-300') == out(
        capsys, trained, '--prompt', 'a', '--temperature', '0'
    )


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_is_one_sentence(trained):
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [sys.executable, '-m', 'lmplay.generate', str(trained)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and done.stderr == 'lmp_generator: No space left on device.\n'


def test_no_prompt_begins_a_text(trained, capsys):
    assert len(out(capsys, trained, '--max-new-tokens', 5, '--no-stop-at-eot')) > 1


def test_interrupts_and_closed_pipes(trained, tmp_path):
    environment = os.environ | {'PYTHONPATH': str(Path(lmplay.__file__).parent.parent)}
    arguments = [
        sys.executable,
        '-m',
        'lmplay.generate',
        str(trained),
        '--max-new-tokens',
        '10000000',
        '--no-stop-at-eot',
    ]
    for stop, code, said in (
        (lambda p: p.send_signal(signal.SIGINT), 130, b'\nlmp_generator: stopped.\n'),
        (lambda p: p.stdout.close(), 141, b''),
    ):
        with subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout.read(20)  # it streams
            stop(process)
            assert process.wait(30) == code
            assert process.stderr.read() == said


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        ([], 'Give one checkpoint'),
        (['nowhere'], "No checkpoint at 'nowhere'"),
        (['RUN', '--temprature', '1'], "Unknown option '--temprature'. Did you mean '--temperature'?"),
        (['RUN', '--temperature', '-1'], 'temperature must be 0'),
        (['RUN', '--prompt', 'Once', '--temperature', '-1'], 'temperature must be 0'),
        (['RUN', '--prompt', 'a\udcff'], "--prompt takes UTF-8; given: b'a\\xff'"),
        (['RUN', '--top-p', '2'], 'top_p must be above 0 and at most 1; given: 2.0'),
        (['RUN', '--num-samples', '0'], '--num-samples must be at least 1'),
        (['RUN', '--max-new-tokens', '-5'], 'max_new_tokens must be 0 or above'),
        (['RUN', '--prompt-file', 'nothing.txt'], "Can't read the prompt file 'nothing.txt'"),
        (['RUN', '--prompt-file', 'bad.txt'], "The prompt file 'bad.txt' is not UTF-8"),
        (['RUN', '--device', 'cuda:99'], "Device 'cuda:99'"),
        (['RUN', '--exp', 'test_runer'], "Did you mean 'test_runner'?"),
    ],
)
def test_mistakes_are_one_sentence(trained, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.txt').write_bytes(b'abc\xff')
    assert main([str(trained) if a == 'RUN' else a for a in arguments]) == 2
    out, error = capsys.readouterr()
    assert (
        sentence in error and error.startswith('lmp_generator: ') and len(error.splitlines()) == 1 and not out
    )


def test_damaged_weights_are_said(trained, tmp_path, capsys):
    from lmplay.runs.checkpoint import read_state, save_checkpoint

    model, state = load_model(trained)
    model.fc.bias.data[3] = torch.nan
    save_checkpoint(
        tmp_path / 'broken', model, None, {k: v for k, v in state.items() if k not in ('sizes', 'format')}
    )
    assert read_state(tmp_path / 'broken')
    assert main([str(tmp_path / 'broken'), '--prompt', 'a']) == 2
    assert 'logits are not finite' in capsys.readouterr().err


def test_help_is_quick_and_imports_no_torch(command):
    started = time.perf_counter()
    done = command('generate', '--help')
    assert done.returncode == 0 and '--repetition-penalty' in done.stdout
    assert time.perf_counter() - started < 2  # 0.05 s; slow machines have time to spare
    script = (
        'import sys\nfrom lmplay.generate.__main__ import main\ntry: main(["--help"])\nexcept SystemExit: '
        'pass\n'
        'assert not {"torch", "numpy"} & set(sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', script], capture_output=True).returncode == 0
