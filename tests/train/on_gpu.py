"""Experiments that ship with lmplay, with a hook around each step that a test of a GPU takes hold of."""

import functools

from lmplay.base.base_model import BasicModelRunner, LMBase
from lmplay.base.runner_list import expose_runner, find_runner


@functools.cache
def watched(model_class: type[LMBase]) -> type[LMBase]:
    class Watched(model_class):
        @staticmethod
        def watch(when, ctx):
            """Called 'before' and 'after' each step that trains."""

        def before_step(self, ctx):
            if ctx.stage != 'check':
                self.watch('before', ctx)
            super().before_step(ctx)

        def after_step(self, ctx):
            super().after_step(ctx)
            if ctx.stage != 'check':
                self.watch('after', ctx)

    return Watched


def runner_of(name: str, **parameters) -> BasicModelRunner:
    own = find_runner(name).function()
    return BasicModelRunner(
        watched(own.model_class), overrides=own.given, training=own.training, **parameters
    )


@expose_runner('watched_gpt2ish')
def gpt2ish(**parameters):
    return runner_of('gpt2ish', **parameters)


@expose_runner('watched_gpt2_moe_test')
def gpt2_moe_test(**parameters):
    return runner_of('gpt2_moe_test', **parameters)


@expose_runner('watched_some_test')
def some_test(**parameters):
    return runner_of('some_test', **parameters)
