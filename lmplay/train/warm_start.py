"""The model that a stage begins with."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..base.base_model import LMBase
from ..base.pretrained import take_tokenizer
from ..base.runner_list import saved_runner
from ..device import seed_all
from ..errors import CheckpointError
from ..files import user_path
from ..runs.checkpoint import load_weights, read_state
from ..runs.checkpoints import find_checkpoint
from ..runs.load import load_model
from ..tokenizers import load_tokenizer
from .resolve import ResolvedStage


def starting_model(
    stage: ResolvedStage,
    previous: LMBase | None,
    *,
    device: torch.device,
    seed: int,
    checkpoints: Path,
    tell: Callable[[str], None],
) -> LMBase:
    """A stage's model with the weights that its `init_from` names; `previous` itself where the stage
    continues it.

    tell: is given each line about a warm start. Raises UserError where the weights do not fit.
    """
    seed_all(seed)
    if stage.continues and previous is not None:
        return previous
    model = stage.runner.build(device)
    source: LMBase | str | Path | None = stage.init_from
    if source == 'previous':
        source = previous
    elif stage.init_from.startswith('stage:'):
        source = checkpoints / f'stage-{stage.init_from.removeprefix("stage:")}'
    if source is not None and source != 'scratch':
        for line in warm_start(model, source):
            tell(line)
        model.to(device)
    return model


def warm_start(model: LMBase, source: LMBase | str | Path) -> list[str]:
    """Gives the model the weights of a model, of a checkpoint or run,
    or of anything its `import_pretrained` reads."""
    if isinstance(source, LMBase):
        return list(model.import_pretrained(source) or [])
    if str(source).startswith('pretrained:'):
        return list(model.import_pretrained(str(source)) or [])
    path = user_path(source)
    # a folder in Hugging Face's format, or a file in another that the model reads
    if (path / 'config.json').is_file() or type(model).reads(path):
        return list(model.import_pretrained(str(path)) or [])
    folder = find_checkpoint(path, prefer='best')
    state = read_state(folder)
    if not {'exp', 'exp_file'} <= state.keys():
        raise CheckpointError(f"The checkpoint '{folder}' is damaged: state.json names no experiment.")
    if saved_runner(state, folder).function().model_class is type(model):
        try:
            load_weights(model, folder)
            tokenizer = load_tokenizer(state['tokenizer']['name'], folder)
            return [f'weights from {folder}', *take_tokenizer(model, tokenizer, str(folder))]
        except CheckpointError:
            if not model.can_start_from(load_model(folder)[0]):
                raise
    return list(model.import_pretrained(load_model(folder)[0]) or [])


def freeze_all_but_marked(model: LMBase) -> None:
    """--default-freeze: only what has `freeze = False`, on itself or on a module around it, trains."""
    free = {id(p) for m in model.modules() if getattr(m, 'freeze', None) is False for p in m.parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) in free or getattr(p, 'freeze', None) is False)
