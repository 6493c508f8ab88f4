"""Packages that are also functions: `lmplay.train` holds the trainer's modules,
and `lmplay.train(...)` trains."""

import importlib
import sys
import types


def make_callable(package: str, function: str) -> None:
    """Lets the package be called as `function` of its module `api`, which is imported at the first call."""

    class CallablePackage(types.ModuleType):
        def __call__(self, *args, **kwargs):
            return getattr(importlib.import_module(f'{package}.api'), function)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
