"""A stage's data: from the names in a plan to rows that can be trained on."""

import logging
from dataclasses import dataclass

from ..data.held_out import HeldOut
from ..data.mixture import Mixture
from ..data.rows import PackedRows, PaddedRows
from ..data.sources import open_source
from ..data.store import open_store, train_bpe
from ..errors import DataError, PlanError
from ..tokenizers import Tokenizer, get_tokenizer
from .plan import Plan, Stage

log = logging.getLogger(__name__)
EVALUATIONS = 20  # of a stage, where it names no interval


@dataclass
class StageData:
    """A stage's data, ready to train on. samples, steps: what the stage trains on in all; None where it trains for `seconds`."""

    mixture: Mixture
    held_out: HeldOut
    row_length: int
    samples: int | None
    steps: int | None
    seconds: float  # 0 where samples are counted
    validation_interval: int | None  # in samples; None: EVALUATIONS times in `seconds`
    save_interval: int | None
    padding_scored: int | None  # the padding's token id where the stage scores it

    @property
    def extent(self) -> str:
        """'1,000 rows of 128 tokens', or how long."""
        rows = f'rows of {self.row_length} tokens'
        return f'{self.samples:,} {rows}' if self.samples is not None else f'{rows} for {self.seconds:g} s'


def open_tokenizer(plan: Plan, progress=log.info) -> Tokenizer | None:
    """The tokenizer that a plan asks for, trained if need be; None where it leaves that to the model."""
    if plan.tokenizer is None:
        return None
    if isinstance(plan.tokenizer, str):
        return get_tokenizer(plan.tokenizer)
    kind = plan.tokenizer.get('type', 'bpe')
    if kind != 'bpe':
        return get_tokenizer(kind)
    names = list(dict.fromkeys(name for i in range(len(plan.stages)) for name in plan.stage(i).datasets))
    sources = [open_source(name, plan.source_spec(name)) for name in names]
    return train_bpe(sources, plan.tokenizer, validation_fraction=plan.validation_fraction, progress=progress)


def row_length(stage: Stage, max_len: int) -> int:
    """Tokens of a row. Raises PlanError where the model takes fewer."""
    length = stage.row_length or max_len
    if length > max_len:
        raise PlanError(
            f'Stage "{stage.name}": rows of {length} tokens are longer than the model\'s max_len of {max_len}.'
        )
    return length


def open_data(
    stage: Stage, plan: Plan, tokenizer: Tokenizer, *, max_len: int, seed: int, progress=log.info
) -> StageData:
    """Opens a stage's data, tokenizing what is not yet. Raises PlanError and DataError for what can't be."""
    length = row_length(stage, max_len)

    def rows(store, documents):
        if stage.packing == 'pack':
            return PackedRows(
                store, documents, length=length, tokenizer=tokenizer, include_prompts=stage.include_prompts
            )
        return PaddedRows(
            store,
            documents,
            length=length,
            tokenizer=tokenizer,
            include_prompts=stage.include_prompts,
            long_documents=stage.long_documents,
            score_padding=stage.score_padding,
        )

    sources, held_out = [], []
    for name in stage.datasets:
        store = open_store(open_source(name, plan.source_spec(name)), tokenizer, progress=progress)
        training, validation = store.split(plan.validation_fraction)
        if not len(validation):
            raise DataError(
                f"Dataset '{name}' has no validation rows: validation_fraction is {plan.validation_fraction} and it has "
                f'no split of its own ({store.meta["documents"]} documents).'
            )
        sources.append(rows(store, training))
        held_out.append((store, validation))
        if not sources[-1].count:
            equal = len(validation) > 1 and len(set(store.hashes.tolist())) == 1
            raise DataError(
                f"Dataset '{name}' has no training rows left: of its {store.meta['documents']} documents {len(validation)} are held out"
                f'{", for they are all equal" if equal else ""}.'
            )
    mixture = Mixture(
        sources, list(stage.datasets.values()), seed=seed, stage=stage.name, exhaust=stage.exhaust
    )
    if stage.seconds:
        samples = None
    elif stage.steps:
        samples = stage.steps * stage.batch_size
    elif stage.tokens:
        samples = max(1, round(stage.tokens / mixture.tokens_per_row))
    else:
        samples = max(1, round((stage.epochs or 1) * mixture.epoch_samples))
    if samples and stage.drop_last:
        samples = max(stage.batch_size, samples - samples % stage.batch_size)
    steps = -(-samples // stage.batch_size) if samples else None
    interval = max(stage.batch_size, -(-samples // EVALUATIONS)) if samples else None
    return StageData(
        mixture,
        HeldOut(
            held_out,
            make_rows=rows,
            length=length,
            max_bytes=stage.validation_bytes,
            include_prompts=stage.include_prompts,
        ),
        length,
        samples,
        steps,
        stage.seconds or 0.0,
        stage.validation_interval or interval,
        stage.save_interval or stage.validation_interval or interval,
        tokenizer.pad_token if stage.score_padding else None,
    )
