"""Any experiment as a model of transformers: importing this module registers it.

    import lmplay.huggingface
    model = AutoModelForCausalLM.from_pretrained('DIR')   # what `lmp_export RUN --to DIR` wrote

B sequences, T positions, V vocabulary.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from .base.base_model import LMBase, LMOutput
from .base.pretrained import fetch, misfits, read_weights, refuse
from .base.runner_list import Registered, find_entry, find_runner
from .errors import ExperimentError, UserError
from .modules import KVCache
from .runs.checkpoint import untied
from .runs.source import SOURCE, origin, read_files
from .tokenizers import BPETokenizer, as_tokenizer, get_tokenizer
from .tokenizers.fast import save_fast

log = logging.getLogger(__name__)


class LMPlayConfig(PreTrainedConfig):
    """What builds the model again.

    experiment   its name; `from_pretrained(..., exp=...)` names another one, or the path of its versions.py
    parameters   its model parameters that differ from the experiment's own
    tokenizer    the name of its tokenizer; 'bpe' is the tokenizer.json beside the weights
    """

    model_type = 'lmplay'

    def __init__(
        self,
        experiment: str = '',
        parameters: dict[str, Any] | None = None,
        tokenizer: str = 'gpt2',
        vocab_size: int = 0,
        max_position_embeddings: int = 0,
        exp: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.experiment = experiment
        self.parameters = parameters or {}
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        # Code runs only where its user names it: from_pretrained sets this afterwards, a file cannot.
        self.exp: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != 'exp'}


class GenerationCache:
    """A model's own cache, and how many positions it holds, between the steps of `generate`."""

    is_compileable = False

    def __init__(self):
        self.entries: list = []
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps these rows, in this order, as beam search asks. Raises UserError for a cache of another kind
        than KVCache and transformers' own."""
        for entry in self.entries:
            if not isinstance(entry, KVCache) and not hasattr(entry, 'reorder_cache'):
                raise UserError(
                    f'The rows of a cache of {type(entry).__name__} cannot be put in another order: generate '
                    'with num_beams=1 or use_cache=False.'
                )
            entry.reorder_cache(beam_idx)


class LMPlayForCausalLM(PreTrainedModel, GenerationMixin):
    """An experiment's model, an LMBase, behind the interface of transformers' causal language models.

    Its hooks `before_step` and `after_step` are called by lmplay's trainer alone.
    """

    config_class = LMPlayConfig  # pyright: ignore[reportAssignmentType]
    base_model_prefix = 'model'
    main_input_name = 'input_ids'

    def __init__(self, config: LMPlayConfig, model: LMBase | None = None):
        super().__init__(config)
        self.model = build(config) if model is None else model
        self.post_init()

    @classmethod
    def wrap(cls, model: LMBase, experiment: str, parameters: dict[str, Any]) -> 'LMPlayForCausalLM':
        """A trained model, which is shared, not copied."""
        tokenizer = as_tokenizer(model.tokenizer)
        config = LMPlayConfig(
            experiment=experiment,
            parameters=parameters,
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.n_vocab,
            max_position_embeddings=model.max_len,
        )
        return cls(config, model)

    def init_weights(self) -> None:
        """None are to be made: the experiment has made its own."""

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache: its kind is the model's own

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: LMPlayConfig | None = None,
        exp: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        **others: Any,
    ) -> 'LMPlayForCausalLM':
        """The model of a folder, or of the hub, in evaluation mode.

        exp: its experiment, needed where that is not installed: a name, or versions.py as PATH or PATH:NAME,
        whose code runs. device_map: one device for all of it, or 'auto'. Everything but weights is built as
        the experiment builds it, never on the meta device. Raises UserError.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = fetch(str(pretrained_model_name_or_path))
        if config is None:
            config = LMPlayConfig.from_pretrained(folder)
        config.name_or_path = str(folder)
        config.exp = exp or config.exp
        with torch.device('cpu'):
            model = cls(config)
        weights, own = read_weights(folder), model.state_dict()
        weights |= {name: weights[owner] for name, owner in untied(own)[1].items() if owner in weights}
        refuse(misfits(weights, own), f"The model in '{folder}'", f'does not fit {config.experiment}')
        model.load_state_dict(weights)
        if (folder / 'generation_config.json').is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval().to(_device(device_map), _dtype(dtype or others.get('torch_dtype'), config))  # pyright: ignore

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any):
        """Writes weights and configuration, the experiment's source, and the tokenizer."""
        kwargs = dict(state_dict=untied(self.state_dict())[0], save_original_format=False) | kwargs
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_source(runner_of(self.config).name, Path(save_directory) / SOURCE)  # pyright: ignore
            save_fast(as_tokenizer(self.model.tokenizer), Path(save_directory), max_len=self.model.max_len)

    def prepare_inputs_for_generation(self, input_ids: Tensor, past_key_values=None, **kwargs: Any):
        seen = past_key_values.length if past_key_values is not None else 0
        kept = {k: kwargs[k] for k in ('attention_mask', 'use_cache') if k in kwargs}
        return {'input_ids': input_ids[:, seen:], 'past_key_values': past_key_values} | kept

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """(B, T) token ids to logits (B, T, V); with use_cache, as `generate` has it, those of the last
        position alone, (B, 1, V).

        attention_mask (B, T) may be 0 at the beginning or the end of a sequence; texts of unequal length are
        computed without a cache. labels (B, T), -100 where not scored: the loss is the mean over the others,
        in training with the model's auxiliary losses. Raises UserError for more positions than max_len.
        """
        positions = input_ids.shape[1] + (past_key_values.length if past_key_values is not None else 0)
        if positions > self.model.max_len:
            raise UserError(f'The model takes at most {self.model.max_len} positions; given: {positions}.')
        padded = attention_mask is not None and not bool(attention_mask.all())
        loss = None
        if use_cache and self.model.takes_cache and not padded and labels is None:
            logits, past_key_values = self._continue(input_ids, past_key_values or GenerationCache())
        else:
            output, past_key_values = self._whole(input_ids, attention_mask if padded else None), None
            logits = output.logits
            assert logits is not None
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
                if self.training:
                    loss = loss + sum(weight * value for value, weight in output.losses.values())
        answer = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # pyright: ignore
        return answer.to_tuple() if return_dict is False else answer

    def _continue(self, x: Tensor, past: GenerationCache) -> tuple[Tensor, GenerationCache | None]:
        answer = self.model(x, cache=past.entries)
        if not isinstance(answer, tuple):  # the model knows no cache, whatever its forward accepts
            return _as_output(answer).logits, None  # pyright: ignore[reportReturnType]
        logits, past.entries = answer
        past.length += x.shape[1]
        return logits, past

    def _whole(self, x: Tensor, mask: Tensor | None) -> LMOutput:
        """One pass; padding, mask 0, is moved to the end of its sequence, where no position sees it."""
        if mask is None:
            return _as_output(self.model(x))
        if mask.shape != x.shape or (mask.diff(dim=1) != 0).sum(1).max() > 1:
            raise UserError(
                'attention_mask must have the shape of input_ids, with padding at one end of each sequence; '
                f'given: {list(mask.shape)} for {list(x.shape)}.'
            )
        T = x.shape[1]
        start = torch.where(mask[:, 0] != 0, 0, (mask == 0).sum(1))[:, None]
        at = torch.arange(T, device=x.device)
        there, back = (at + start) % T, (at - start) % T
        takes = {'mask': mask.gather(1, there).bool()} if 'mask' in self.model.forward_takes else {}
        output = _as_output(self.model(x.gather(1, there), **takes))
        assert output.logits is not None
        index = back[..., None].expand_as(output.logits)
        return LMOutput(logits=output.logits.gather(1, index), losses=output.losses)


def build(config: LMPlayConfig) -> LMBase:
    """The model of a configuration, with fresh weights. Raises UserError."""
    runner = runner_of(config)
    parameters = dict(config.parameters)
    declared = runner.function()
    if 'tokenizer' in declared.declared:
        file = Path(config.name_or_path or '.') / BPETokenizer.FILE
        parameters['tokenizer'] = (
            BPETokenizer.load(file) if config.tokenizer == 'bpe' else get_tokenizer(config.tokenizer)
        )
    model = runner.function(**parameters).build()
    if model.tokenizer.n_vocab != config.vocab_size:
        raise UserError(
            f"The tokenizer of '{config.name_or_path}' has {model.tokenizer.n_vocab:,} entries; the model "
            f'was trained with {config.vocab_size:,}.'
        )
    return model


def runner_of(config: LMPlayConfig) -> Registered:
    """The experiment's runner: the one that the user named, or an installed one. Raises ExperimentError."""
    if config.exp:
        return find_runner(config.exp)
    where = config.name_or_path or ''
    try:
        runner = find_runner(config.experiment, written_in=f"The model '{where}'")
    except ExperimentError as error:
        raise ExperimentError(
            f"{error} The source that '{where}' was exported with runs where you name it: "
            f"from_pretrained(..., exp='{where}/{SOURCE}/versions.py:{config.experiment}')."
        ) from error
    exported = read_files(Path(where) / SOURCE) if where else {}
    now = read_files(origin(find_entry(runner.name)))
    changed = sorted(f for f in exported.keys() | now.keys() if exported.get(f) != now.get(f))
    if exported and changed:
        told = "The experiment %s has changed since '%s' was exported: %s."
        log.warning(told, runner.name, where, ', '.join(changed))
    return runner


def write_source(experiment: str, folder: Path) -> None:
    """Copies the source of an experiment, to be read, compared, and run where its user names it."""
    for path, content in read_files(origin(find_entry(experiment))).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _as_output(answer: Tensor | LMOutput) -> LMOutput:
    return answer if isinstance(answer, LMOutput) else LMOutput(logits=answer)


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, dict) and len(device_map) == 1:
        (device_map,) = device_map.values()
    if isinstance(device_map, dict):
        raise UserError("device_map must be one device for the whole model, or 'auto'; given: several.")
    if device_map == 'auto':
        device_map = 'cuda' if torch.cuda.is_available() else 'cpu'
    return torch.device('cpu' if device_map is None else device_map)


def _dtype(given: str | torch.dtype | None, config: LMPlayConfig) -> torch.dtype:
    """What is asked for; else, as with 'auto', that in which the weights were saved."""
    wanted = config.dtype if given in (None, 'auto') else given
    wanted = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if given not in (None, 'auto') and not isinstance(wanted, torch.dtype):
        raise UserError(f"dtype must be 'auto' or one of torch's, as 'bfloat16'; given: {given!r}.")
    return wanted or torch.float32


AutoConfig.register(LMPlayConfig.model_type, LMPlayConfig, exist_ok=True)
AutoModelForCausalLM.register(LMPlayConfig, LMPlayForCausalLM, exist_ok=True)
