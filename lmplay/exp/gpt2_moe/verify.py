"""lmp_verify_moe: ten checks of an upcycled model, with what they measure."""

import argparse
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.cli import CommandParser, run_command
from lmplay.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from lmplay.base.base_model import LMBase

    from .checks import Finding


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_verify_moe',
        description='Upcycles a dense model, or takes an upcycled one as it was trained, and runs ten '
        'checks, each with what it measures.',
        examples="""
            lmp_verify_moe                                  GPT-2, upcycled as the study does
            lmp_verify_moe runs/gpt2_moe-moe_emergence      a trained model""",
    )
    p.add_argument(
        'source',
        nargs='?',
        default='gpt2',
        metavar='SOURCE',
        help="a run or checkpoint of lmplay; a folder in Hugging Face's format; a model of the moe-emergence "
        'study (STEM of STEM.safetensors and STEM.json, or a folder); or the name of pretrained weights '
        '(default: gpt2)',
    )
    p.add_argument(
        '--tiny', action='store_true', help='a small GPT-2 with random weights instead; needs no download'
    )
    p.add_argument(
        '--report', type=Path, metavar='FILE.md', help='write a log of this run, with its environment'
    )
    return p


def main(argv: list[str] | None = None) -> int:
    def command() -> int:
        args = parser().parse_args(argv)
        args.command = ['lmp_verify_moe', *(sys.argv[1:] if argv is None else argv)]
        return run(args)

    return run_command('lmp_verify_moe', command)


def run(args: argparse.Namespace) -> int:
    import torch

    from .checks import Checks
    from .report import RunLog, environment, tables

    if args.report and args.report.is_dir():
        raise UserError(f"--report names a file; '{args.report}' is a folder.")
    started, lines = time.perf_counter(), []

    def tell(line: str) -> None:
        lines.append(line)
        print(line)

    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        model, dense, what = tiny() if args.tiny else open_source(args.source)
        tell(
            f'{model.name}: {what}; experts in layers {list(model.moe_layers)}, {model.num_experts} each, '
            f'top {model.top_k}'
        )
        checks = Checks(model, dense)
        outcome = [
            report(number, title, check, tell) for number, (title, check) in enumerate(checks.all(), start=1)
        ]
    print('\n' + tables(checks) + '\n')
    print('; '.join(f'{name} {value}' for name, value in environment(str(checks.device)).items()))
    failed, skipped = outcome.count(False), outcome.count(None)
    print(
        f'\n{outcome.count(True)} of {len(outcome)} checks passed'
        + (f', {failed} failed' if failed else '')
        + (f', {skipped} did not apply' if skipped else '')
    )
    if args.report:
        issues = list(dict.fromkeys(' '.join(str(w.message).split()) for w in caught))
        seconds = time.perf_counter() - started
        log = RunLog(shlex.join(args.command), what, checks, outcome, lines, issues, seconds)
        write_report(args.report, log.markdown(args.report.stem))
    return 1 if failed else 0


def write_report(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f"Can't write the report '{file}': {error.strerror or error}.") from error
    print(f'Report: {file}')


def report(
    number: int, title: str, check: Callable[[], 'list[Finding] | None'], tell: Callable[[str], None]
) -> bool | None:
    """Runs a check and tells its findings; returns whether it passed, None where it does not apply."""
    tell(f'\n[Test {number}] {title}...')
    findings = check()
    if findings is None:
        tell('  [--] a trained model has no dense model to be compared with')
        return None
    for good, line in findings:
        tell(f'  [{"OK" if good else "FAIL"}] {line}')
    return all(good for good, _ in findings)


def tiny():
    """(model, dense, description) of a small GPT-2 made here."""
    from .model import UpcycledLM
    from .pretrained import upcycle

    model = UpcycledLM(
        num_blocks=4,
        embed_dim=64,
        num_heads=2,
        max_len=128,
        moe_layers='last 2',
        tokenizer='bytes',
        version='tiny',
    )
    dense = model.family.model_class(model.model.config)
    upcycle(model, dense)
    return model, dense, 'random weights'


def open_source(source: str):
    """(model, dense or None, description) of what the command names."""
    from lmplay.base.pretrained import fetch

    from .model import UpcycledLM
    from .study import find_stem, read_study

    path = Path(source)
    stem = find_stem(path)
    if stem is not None:
        return upcycled(read_study(stem, UpcycledLM)[0], f'weights of {stem}')
    for folder in (path, path / 'checkpoints' / 'best', path / 'checkpoints' / 'last'):
        if (folder / 'state.json').is_file():
            return open_checkpoint(folder)
    if (path / 'config.json').is_file():
        return open_weights(path, source)
    if path.exists():
        raise CheckpointError(
            f"'{source}' is neither a run or checkpoint of lmplay nor a folder in Hugging Face's format."
        )
    return open_weights(fetch(source.removeprefix('pretrained:')), source)


def open_weights(folder: Path, name: str):
    """(model, dense, description) of a folder in Hugging Face's format, upcycled to 8 experts, top 1."""
    from lmplay.base.pretrained import adopt_tokenizer, read_config

    from .families import find_family
    from .model import UpcycledLM
    from .pretrained import check_settings, load_folder, upcycle

    family = find_family(str(read_config(folder).get('model_type')))
    dense = load_folder(folder, family)
    shape = {ours: family.setting(dense.config, theirs) for theirs, ours in family.settings.items() if ours}
    beside = folder / 'tokenizer.json'
    model = UpcycledLM(
        family=family.type,
        **shape,
        max_len=dense.config.max_position_embeddings,
        moe_layers=_last(shape['num_blocks']),
        tokenizer=str(beside) if beside.is_file() else 'gpt2' if shape['vocab_size'] == 50257 else 'bytes',
        attn_dropout=0.0,
        ff_dropout=0.0,
        embed_dropout=0.0,
        version=folder.name,
    )
    check_settings(model, dense.config, name)
    adopt_tokenizer(model, folder)
    upcycle(model, dense)
    return model, dense, f'weights of {name}'


def open_checkpoint(folder: Path) -> tuple[Any, Any, str]:
    """(model, dense or None, description) of a checkpoint."""
    return upcycled(load_checkpoint(folder), f'weights of {folder}')


def upcycled(source: Any, what: str) -> tuple[Any, Any, str]:
    """(model, dense or None, description) of a model; an upcycled one stays as it was trained."""
    from lmplay.tokenizers import as_tokenizer

    from .families import find_family
    from .model import UpcycledLM
    from .pretrained import dense_of, upcycle

    if getattr(source, 'moe_layers', None):
        return source, None, f'trained {what}'
    h = source.hyperparameters
    options = find_family(h['family']).options if 'family' in h else {}
    model = UpcycledLM(
        family=h.get('family', 'gpt2'),
        **{key: h[key] for key in ('num_blocks', 'embed_dim', 'num_heads', 'max_len')},
        moe_layers=_last(h['num_blocks']),
        tokenizer=as_tokenizer(source.tokenizer),
        vocab_size=h.get('vocab_size'),
        **{key: h.get(key) for key in options},
        attn_dropout=0.0,
        ff_dropout=0.0,
        embed_dropout=0.0,
        version=source.name,
    )
    dense, _ = dense_of(model, source)
    upcycle(model, dense)
    return model, dense, what


def load_checkpoint(folder: Path) -> 'LMBase':
    """The model of a checkpoint. An experiment stands below `lmplay.runs`, which has a reader of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    from lmplay.base.runner_list import saved_runner
    from lmplay.files import CHECKSUMS, damage, seal_is_broken
    from lmplay.tokenizers import load_tokenizer

    try:
        state = json.loads((folder / 'state.json').read_text(encoding='utf-8'))
        problem = damage(folder, state.get('sizes', {}), state.get(CHECKSUMS, {}))
        if problem or seal_is_broken(state):
            raise CheckpointError(
                f"The checkpoint '{folder}' is damaged: {problem or 'state.json has changed'}."
            )
        tokenizer = load_tokenizer(state['tokenizer']['name'], folder)
        runner = saved_runner(state, folder)
        model = runner.function(**state['parameters'], tokenizer=tokenizer).build()
        load_model(model, folder / 'model.safetensors')
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise CheckpointError(
            f"The checkpoint '{folder}' is damaged or of another model ({reason})."
        ) from error
    return model


def _last(num_blocks: int) -> str:
    """The last 4 blocks, but at most half of them."""
    return f'last {min(4, max(1, num_blocks // 2))}'


if __name__ == '__main__':
    sys.exit(main())
