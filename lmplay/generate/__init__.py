"""Text from a trained model: lmp_generator, and `lmplay.generate(...)` from Python (api.py)."""

from ..callable_package import make_callable

make_callable(__name__, 'generate')
