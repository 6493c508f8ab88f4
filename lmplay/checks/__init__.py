"""Does a model keep the contract? One implementation for the trainer, lmp_compare, lmp_new and the test suite."""

from .runnable import check_runnable

__all__ = ['check_runnable']
