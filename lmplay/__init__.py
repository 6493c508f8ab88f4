"""lmplay: a playground for language-model architectures that gives honest answers.

Experiments under lmplay/exp/ are found by themselves. An experiment may also be registered by hand with an import line
at the end of this file, e.g. `import lmplay.exp.my_experiment.versions`. This module imports no torch by itself.
"""

__version__ = '0.1.0'
