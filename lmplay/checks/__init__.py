"""Does a model keep the contract? One implementation for the trainer, lmp_compare,
lmp_new and the test suite."""

from .contract import Finding, check_contract, is_too_large, require_contract
from .documents import require_document_mask
from .experiment import check_experiment, narrow, require_experiment, smallest, smallest_parameters
from .runnable import check_runnable

__all__ = [
    'Finding',
    'check_contract',
    'check_experiment',
    'check_runnable',
    'is_too_large',
    'narrow',
    'require_contract',
    'require_document_mask',
    'require_experiment',
    'smallest',
    'smallest_parameters',
]
