"""What users of the original lmplay type: options that became others, and what refuses the rest by name."""

from collections.abc import Mapping, Sequence

from .errors import UserError

# An option's new words, the value behind it kept; or, beginning with a capital, why it is refused.
TRAINER = {
    '--grad-clip': '--clip',
    '--optimizer-warmup-steps': '--warmup',
    '--disable-optimizer-warmup': '--warmup 0',
    '--context-len': '--max-len',
    '--context_len': '--max-len',
    '--model': 'A run is kept in --run-dir DIR and resumed from there; a new one starts from '
    '--initial-model PATH',
    '--compile-mode': 'With --compile-model the mode is the one that pays; --no-compile-model turns it off',
    '--compile-backend': 'With --compile-model the backend is inductor; --no-compile-model turns it off',
    '--optimizer-warmup-fraction': "The warm-up starts at its first step's share of the rate, or at 0 with "
    '--warmup-from-zero; --warmup says how long it is',
    '--no-grad-scale': 'Gradients are scaled where --amp computes in fp16 and nowhere else',
    '--validation-batch-size': 'How much text is evaluated is --validation-bytes N, how much at a time '
    '--mini-batch-size N',
}
GENERATOR = {
    '--max-len': '--max-new-tokens',
    '--do-sample': 'Tokens are sampled at --temperature T above 0; --temperature 0 is greedy',
}
PLOTSTATS = {
    '--average-count': '--smooth',
    '--target': '--baseline',
    '--plot-train': 'Training and validation are both drawn; --metric NAME chooses what',
    '--min-show': 'Runs are drawn whole, on one axis: --x tokens',
    '--out-type': 'The name of the file tells: --out curves.png, .svg or .pdf',
    '--max-files': 'All runs are drawn that are given: RUN ..., or a directory that holds some',
    '--plot-raw': 'Points as they were recorded are drawn by --smooth 1',
}


def in_new_words(argv: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The command line with options of the original lmplay replaced.

    Raises UserError for one that is gone, with the name of what replaces it.
    """
    words: list[str] = []
    for i, word in enumerate(argv):
        if word == '--':
            return words + list(argv[i:])
        flag, equals, value = word.partition('=')
        became = names.get(flag)
        if became is None:
            words.append(word)
        elif became[0] != '-':
            raise UserError(f"Option '{flag}' of the original lmplay is gone. {became}.")
        else:
            new, *fixed = became.split()
            words += [f'{new}={value}'] if equals else [new, *fixed]
    return words
