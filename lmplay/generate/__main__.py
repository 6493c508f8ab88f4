"""lmp_generator: continues prompts with a trained model."""

import argparse
import io
import os
import sys

from ..cli import CommandParser, json_line, plain, run_command
from ..errors import DataError, UserError
from ..files import regular, user_path
from ..original import GENERATOR, in_new_words


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_generator',
        description='Continues prompts with a trained model. The checkpoint names experiment and tokenizer.',
        examples="""
            lmp_generator runs/gpt2ish-quickstart --prompt 'def main('
            lmp_generator runs/gpt2ish-quickstart --prompt-file story.txt --temperature 0.5""",
    )
    _add_model_options(p)
    _add_prompt_options(p)
    _add_sampling_options(p)
    return p


def _add_model_options(p: CommandParser) -> None:
    checkpoint = "a run's directory (its best checkpoint) or a checkpoint"
    p.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT', help=checkpoint)
    p.add_argument(
        '--model', metavar='CHECKPOINT', help='the same; what stands alone is then a prompt, or its file'
    )
    p.add_exp()
    p.add_device()


def _add_prompt_options(p: CommandParser) -> None:
    text = 'text to continue; repeatable (without any: a new text)'
    p.add_argument('--prompt', action='append', default=[], metavar='TEXT', help=text)
    file = "file that holds one prompt; '-' is standard input; repeatable"
    p.add_argument('--prompt-file', action='append', default=[], metavar='FILE', help=file)
    p.add_argument('--num-samples', type=int, default=1, metavar='N', help='continuations of each prompt (1)')
    p.add_argument('--json', action='store_true', help='one JSON object for each continuation')


def _add_sampling_options(p: CommandParser) -> None:
    length = 'length of the continuation (200)'
    p.add_argument('--max-new-tokens', type=int, default=200, metavar='N', help=length)
    greedy = '0: always the most probable token (0.8)'
    p.add_argument('--temperature', type=float, default=0.8, metavar='T', help=greedy)
    p.add_argument('--top-k', type=int, metavar='K', help='choose among the K most probable tokens')
    nucleus = 'choose among the most probable tokens that together reach P'
    p.add_argument('--top-p', type=float, metavar='P', help=nucleus)
    rarer = 'above 1: tokens of the text become less likely (1)'
    p.add_argument('--repetition-penalty', type=float, default=1.0, metavar='X', help=rarer)
    end = 'stop at the end-of-text token'
    p.add_argument('--stop-at-eot', action=argparse.BooleanOptionalAction, default=True, help=end)
    p.add_argument('--seed', type=int, default=0, metavar='N', help='equal seeds, equal text (0)')


def main(argv: list[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # a terminal may not know every character
    return run_command('lmp_generator', lambda: run(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    args = parser().parse_args(in_new_words(sys.argv[1:] if argv is None else argv, GENERATOR))
    # as in the original lmplay: PROMPT --model PATH
    if args.checkpoint is not None and args.model is not None:
        prompts = args.prompt_file if user_path(args.checkpoint).is_file() else args.prompt
        prompts.append(args.checkpoint)
        args.checkpoint = None
    if args.checkpoint is None and args.model is None:
        raise UserError(
            "Give one checkpoint: the path of a run's directory or of a checkpoint, alone or after --model."
        )
    for text in args.prompt:
        if any('\ud800' <= c <= '\udfff' for c in text):  # what Python makes of bytes that are none
            raise UserError(f'--prompt takes UTF-8; given: {os.fsencode(text)!r}.')
    if args.num_samples < 1:
        raise UserError(f'--num-samples must be at least 1; given: {args.num_samples}.')
    return args


def run(args: argparse.Namespace) -> None:
    texts = [*args.prompt, *map(read_prompt, args.prompt_file)] or ['']

    from ..device import amp_dtype, autocast, find_device, keep_freed_memory
    from ..runs.load import load_model
    from ..tokenizers import as_tokenizer
    from .generator import TextStream, generate

    keep_freed_memory()
    device = find_device(args.device)
    model, _ = load_model(args.checkpoint or args.model, device=str(device), exp=args.exp)
    tokenizer = as_tokenizer(model.tokenizer)
    texts = [text for text in texts for _ in range(args.num_samples)]
    single = len(texts) == 1 and not args.json
    stream = TextStream(tokenizer)
    start = iter(texts[:1])  # stands there once the first token follows it
    with autocast(device, amp_dtype(device, args.amp)):
        new = generate(
            model,
            [tokenizer.encode(text) for text in texts],
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            seed=args.seed,
            stop_token=tokenizer.eot_token if args.stop_at_eot else None,
            on_token=(lambda _, token: print(plain(next(start, '') + stream.feed(token)), end='', flush=True))
            if single
            else None,
        )
    if single:
        print(plain(next(start, '') + stream.finish()))
    else:
        _print_all(texts, [tokenizer.decode(tokens) for tokens in new], list(map(len, new)), args)


def _print_all(texts: list[str], continued: list[str], lengths: list[int], args: argparse.Namespace) -> None:
    for row, (text, more, length) in enumerate(zip(texts, continued, lengths, strict=True)):
        prompt, sample = divmod(row, args.num_samples)
        if args.json:
            found = {'prompt': text, 'sample': sample, 'text': more, 'tokens': length}
            print(json_line(found))
        else:
            print(f'--- prompt {prompt + 1}, sample {sample + 1}\n{plain(text + more)}')


def read_prompt(name: str) -> str:
    """The text of a file, or of standard input, read as training text is: UTF-8, or UTF-16 with its mark.

    Without byte-order mark and the line end that closes it.
    """
    from ..data.local import UTF16

    try:
        data = sys.stdin.buffer.read() if name == '-' else regular(user_path(name)).read_bytes()
        encoding = 'utf-16' if data[:2] in UTF16 else 'utf-8-sig'
        return data.decode(encoding).removesuffix('\n').removesuffix('\r')
    except UnicodeDecodeError as error:
        raise DataError(
            f"The prompt file '{name}' is not {error.encoding.upper()}: {error.reason} at byte {error.start}."
        ) from error
    except OSError as error:
        raise DataError(f"Can't read the prompt file '{name}': {error.strerror}.") from error


if __name__ == '__main__':
    sys.exit(main())
