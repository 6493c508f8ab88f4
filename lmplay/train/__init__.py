"""Training by plans: lmp_trainer, and `lmplay.train(...)` from Python (api.py)."""

from ..callable_package import make_callable

make_callable(__name__, 'train')
