"""A stage's data: from the names in a plan to sequences that can be trained on."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.cache import cache_dir
from ..data.held_out import HeldOut
from ..data.mixture import Mixture
from ..data.rows import make_rows
from ..data.sources import open_source
from ..data.split import SPLITS
from ..data.store import TokenStore, open_store
from ..data.trained_bpe import train_bpe
from ..errors import DataError
from ..tokenizers import Tokenizer, as_tokenizer, get_tokenizer
from .plan import Plan
from .resolve import ResolvedStage

log = logging.getLogger(__name__)
SHAPE = {
    'packing',
    'include_prompts',
    'long_documents',
    'score_padding',
}  # settings of how documents become sequences


@dataclass(frozen=True)
class StageData:
    """A stage's training sequences and its held-out text.

    padding_scored: the padding is a target too. trained: hashes of the documents that are trained on.
    """

    mixture: Mixture
    held_out: HeldOut
    padding_scored: bool
    trained: np.ndarray


def open_tokenizer(plan: Plan, progress=log.info) -> Tokenizer | None:
    """The tokenizer that a plan asks for, trained if need be; None where it leaves that to the model."""
    if plan.tokenizer is None:
        return None
    if isinstance(plan.tokenizer, str):
        return get_tokenizer(plan.tokenizer)
    kind = plan.tokenizer.get('type', 'bpe')
    if kind != 'bpe':
        return get_tokenizer(kind)
    names = dict.fromkeys(name for i in range(len(plan.stages)) for name in plan.stage(i).datasets)
    sources = [open_source(name, plan.source_spec(name)) for name in names]
    return train_bpe(sources, plan.tokenizer, validation_fraction=plan.validation_fraction, progress=progress)


def open_data(stage: ResolvedStage, tokenizer: Tokenizer, *, seed: int, progress=log.info) -> StageData:
    """Opens a stage's data, tokenizing what is not yet.

    Raises PlanError and DataError for what can't be opened, and where no target is scored.
    """
    settings = stage.settings
    shape = {key: getattr(settings, key) for key in SHAPE}

    def rows(store: TokenStore, documents):
        return make_rows(store, documents, length=stage.row_length, tokenizer=tokenizer, **shape)

    sources, held_out, trained = [], [], []
    for name in settings.datasets:
        source = open_source(name, stage.datasets[name])
        store = open_store(source, tokenizer, progress=progress)
        training, validation = split(name, store, stage.validation_fraction)
        _tell_split(name, source.spec, store, validation, tokenizer, progress)
        sources.append(rows(store, training))
        held_out.append((store, validation))
        trained.append(store.hashes[training])
        if not sources[-1].count:
            raise DataError(_nothing_left(name, store, len(validation)))
    shares = list(settings.datasets.values())
    mixture = Mixture(sources, shares, seed=seed, stage=stage.name, exhaust=settings.exhaust)
    evaluated = HeldOut(
        held_out,
        make_rows=rows,
        tokenizer=tokenizer,
        length=stage.row_length,
        max_bytes=settings.validation_bytes,
        document_bytes=settings.validation_document_bytes or None,
        include_prompts=settings.include_prompts,
    )
    _check_scored(stage, mixture, evaluated)
    _tell_held_out(stage, evaluated, progress)
    data = StageData(mixture, evaluated, settings.score_padding, np.unique(np.concatenate(trained)))
    if told := check_held_apart(data, data, 'in the same stage'):
        progress(f'Stage "{stage.name}": {told}.')
    return data


def _tell_held_out(stage: ResolvedStage, evaluated: HeldOut, progress) -> None:
    counts = [
        f'{domain} {c["documents"]} (effective {c["effective"]})' for domain, c in evaluated.counts().items()
    ]
    progress(f'Stage "{stage.name}": held-out documents: {", ".join(counts)}.')


TRAINED_ON = 0.1  # of the held-out documents, above which their loss says nothing


def check_held_apart(data: StageData, other: StageData, where: str) -> str | None:
    """What to tell where documents that a stage is evaluated on are trained on, in the other stage's data.

    Raises DataError where they are more than a tenth.
    """
    hashes = np.array([d['hash'] for d in data.held_out.documents], np.uint64)
    known = int(np.isin(hashes, other.trained).sum())
    told = f'{known} of {len(hashes)} held-out documents are trained on {where}'
    if known > TRAINED_ON * len(hashes):
        raise DataError(
            f'{told}: their loss would say what was learned by heart. Give the same text one definition '
            '(path, limit and max_bytes choose what is held out), or "validation" files of its own.'
        )
    return told if known else None


FEW = 3  # documents held out, which are named


def _tell_split(
    name: str,
    spec: dict,
    store: TokenStore,
    validation: np.ndarray,
    tokenizer: Tokenizer,
    progress: Callable[[str], None],
) -> None:
    """Says what is held out and what is left, where that is a matter of a few documents."""
    sizes = store.text_bytes.sum(axis=1)
    held, whole = int(sizes[validation].sum()), int(sizes.sum())
    if 'validation' not in spec and (store.splits[validation] == SPLITS['validation']).any():
        count = len(store.lengths) - len(validation)
        ends = (
            f'the ends of {len(validation)} of {count} documents' if count > 1 else 'the end of its document'
        )
        progress(f'{name}: held out are {ends}, {held:,} of {whole:,} bytes.')
        return
    if len(validation) > FEW:
        return
    starts = (tokenizer.decode(store.tokens[(at := store.starts[d]) : at + 16].tolist()) for d in validation)
    begins = ', '.join(repr(text[:40]) for text in starts)
    progress(
        f'{name}: held out are {len(validation)} of {len(store.lengths)} documents, {held:,} of {whole:,} '
        f'bytes, beginning with {begins}. Their end alone would be with "hold_out": "ends".'
    )


def _check_scored(stage: ResolvedStage, mixture: Mixture, held_out: HeldOut) -> None:
    """Warns of sequences without a target; raises DataError where training or held-out text has no other."""
    for i, (name, rows) in enumerate(zip(stage.settings.datasets, mixture.sources, strict=True)):
        sequences, documents = mixture.unscored(i)
        _tell_unscored(f"Dataset '{name}', training", sequences, rows.count, documents, stage)
    documents = sum(not d['scored'] for d in held_out.documents)
    sequences = sum(part.count for part in held_out.rows)
    _tell_unscored('Held-out text', held_out.unscored, sequences, documents, stage)
    scored = {d['domain'] for d in held_out.documents if d['scored']}
    if without := sorted({d['domain'] for d in held_out.documents} - scored):
        log.warning(
            'Stage "%s": nothing is scored of the held-out text of %s, which has no loss.',
            stage.name,
            ', '.join(without),
        )


def _tell_unscored(what: str, unscored: int, sequences: int, documents: int, stage: ResolvedStage) -> None:
    counted = f'{unscored:,} of {sequences:,} sequences score nothing, and {documents:,} documents'
    if unscored == sequences:
        raise DataError(
            f'Stage "{stage.name}": {what}: no target is scored ({counted}), because prompts are not scored '
            f'and no answer is reached within sequences of {stage.row_length} tokens. Use a longer '
            'row_length, long_documents "split", or include_prompts.'
        )
    if unscored:
        log.warning('Stage "%s": %s: %s.', stage.name, what, counted)


def split(name: str, store: TokenStore, validation_fraction: float):
    """(training documents, held-out documents) of a store.

    Raises DataError where nothing would be held out.
    """
    training, validation = store.split(validation_fraction)
    if not len(validation):
        same = len(store.hashes) > 1 and len(set(store.hashes.tolist())) == 1
        raise DataError(
            f"Dataset '{name}' has no held-out documents: validation_fraction is {validation_fraction} and "
            f'it has no split of its own ({store.meta["documents"]} documents)'
            f'{", and all documents are identical" if same else ""}.'
        )
    return training, validation


def _nothing_left(name: str, store: TokenStore, held_out: int) -> str:
    return (
        f"Dataset '{name}' has no training sequences left: of its {store.meta['documents']} documents "
        f'{held_out} are held out.'
    )


def save_datasets(stages: Sequence[ResolvedStage], *, seed: int, tell: Callable[[str], None]) -> None:
    """--save-datasets: fetches and tokenizes all that the stages need, pretrained weights too."""
    for stage in stages:
        model = stage.skeleton
        if stage.init_from.startswith('pretrained:'):
            model = stage.runner.build()
            model.import_pretrained(stage.init_from)  # fetches the weights into the hub's cache
            tell(f'Stage "{stage.name}": the weights of {stage.init_from} are ready.')
        data = open_data(stage, as_tokenizer(model.tokenizer), seed=seed, progress=tell)
        ready = f'{data.mixture.epoch_samples:,.0f} sequences of {stage.row_length} tokens'
        tell(f'Stage "{stage.name}": {ready} are ready.')
    tell(
        f"Tokens are in '{cache_dir()}': copy it, and set LMP_DATASETS to it, on a machine without a "
        'network. Pretrained weights are in the Hugging Face cache (~/.cache/huggingface or HF_HOME).'
    )
