from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner

from .model import GPT2


@expose_runner('gpt2ish', description='Reference model. Loosely based on GPT-2.')
def runner(*args, **kwargs):
    return BasicModelRunner(GPT2, *args, overrides=dict(), **kwargs)


@expose_runner('gpt2ish_med', description='Medium: 24 layers, 1024 wide, 16 heads.')
def runner_med(*args, **kwargs):
    return BasicModelRunner(
        GPT2,
        *args,
        overrides=dict(num_blocks=24, embed_dim=1024, num_heads=16, version='gpt2ish_med'),
        **kwargs,
    )


@expose_runner('gpt2ish_large', description='Large: 36 layers, 1280 wide, 20 heads.')
def runner_large(*args, **kwargs):
    return BasicModelRunner(
        GPT2,
        *args,
        overrides=dict(num_blocks=36, embed_dim=1280, num_heads=20, version='gpt2ish_large'),
        **kwargs,
    )


@expose_runner('test_runner', description='Tiny: 2 layers, 64 wide, 2 heads, for quick tests.')
def runner_test(*args, **kwargs):
    return BasicModelRunner(
        GPT2,
        *args,
        overrides=dict(num_blocks=2, embed_dim=64, num_heads=2, max_len=128, version='test_runner'),
        **kwargs,
    )


@expose_runner('s_gpt2ish', description='Small and deep: 18 layers, 288 wide, 6 heads.')
def runner_small(*args, **kwargs):
    return BasicModelRunner(
        GPT2, *args, overrides=dict(num_blocks=18, embed_dim=288, num_heads=6, version='s_gpt2ish'), **kwargs
    )
