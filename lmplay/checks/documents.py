"""Does `document_mask` keep the documents of a sequence apart in a model?"""

import torch

from ..base.base_model import LMBase, LMOutput
from ..errors import ExperimentError
from ..modules.attention import DocumentMask
from ..tokenizers import as_tokenizer

POSITIONS = 32
ROUNDING = 1e-4  # of what the other document does without the mask


@torch.no_grad()
def require_document_mask(model: LMBase) -> None:
    """Raises ExperimentError where, under the mask, a model on its device still sees another document."""
    tokenizer = as_tokenizer(model.tokenizer)
    mask, device = DocumentMask(model, tokenizer.eot_token), next(model.parameters()).device
    length = min(POSITIONS, model.max_len)
    border = length // 2
    words = [t for t in range(min(tokenizer.n_vocab, length)) if t != tokenizer.eot_token]
    rows = [[words[(i + shift) % len(words)] for i in range(length)] for shift in (0, 1)]
    texts = torch.tensor(rows, device=device)
    texts[1, border:] = texts[0, border:]
    texts[:, border] = tokenizer.eot_token

    def seen() -> float:
        """How much the first document does to what is computed of the second."""
        out = model(texts)
        logits = out.logits if isinstance(out, LMOutput) else out
        assert logits is not None
        return (logits[0] - logits[1])[border:].abs().max().item()

    training = model.training
    model.eval()
    try:
        without = seen()
        with mask.over(texts):
            apart = seen()
    finally:
        model.train(training)
    if not apart <= ROUNDING * without:
        raise ExperimentError(
            f'document_mask: {model.name} sees the other documents of a sequence all the same (by up to '
            f'{apart:.2g} in its logits; {without:.2g} without the mask). It reaches attention that is '
            'CausalSelfAttention of lmplay.modules, and nothing else that goes from position to position.'
        )
