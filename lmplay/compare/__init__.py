"""Fair comparison: lmp_compare, and `lmplay.compare(...)` from Python (api.py)."""

from ..callable_package import make_callable

make_callable(__name__, 'compare')
