"""Where experiments written for the original lmplay import `BasicModelRunner` from."""

from .base_model import BasicModelRunner

__all__ = ['BasicModelRunner']
