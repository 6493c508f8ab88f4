from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner

from .model import UnifiedGPT2

ALL = dict(embedding='unified', linear='ulinear', value_norm=True)


@expose_runner('unified', description='gpt2ish with unified embedding, ULinear and value norm.')
def runner(*args, **kwargs):
    return BasicModelRunner(UnifiedGPT2, *args, overrides=dict(**ALL, version='unified'), **kwargs)


@expose_runner('unified_embedding', description='gpt2ish with a unified embedding, 8 times as wide.')
def runner_embedding(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2, *args, overrides=dict(embedding='unified', version='unified_embedding'), **kwargs
    )


@expose_runner('unified_ulinear', description='gpt2ish with scaled outputs of its linear layers (ULinear).')
def runner_ulinear(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2, *args, overrides=dict(linear='ulinear', version='unified_ulinear'), **kwargs
    )


@expose_runner('unified_ulinear_all', description='gpt2ish with ULinear, all of its vectors on.')
def runner_ulinear_all(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2, *args, overrides=dict(linear='ulinear_all', version='unified_ulinear_all'), **kwargs
    )


@expose_runner(
    'unified_dulinear', description='gpt2ish with linear layers of predicted scale and bias (DULinear).'
)
def runner_dulinear(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2, *args, overrides=dict(linear='dulinear', version='unified_dulinear'), **kwargs
    )


@expose_runner('unified_lradd', description='gpt2ish with learned residual connections (LRAdd).')
def runner_lradd(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2, *args, overrides=dict(residual='lradd', version='unified_lradd'), **kwargs
    )


@expose_runner('unified_value_norm', description='gpt2ish with normalised values in attention.')
def runner_value_norm(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2, *args, overrides=dict(value_norm=True, version='unified_value_norm'), **kwargs
    )


@expose_runner('unified_small', description='unified at the size of the quickstart: 4 layers, 192 wide.')
def runner_small(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2,
        *args,
        overrides=dict(**ALL, num_blocks=4, embed_dim=192, num_heads=6, max_len=256, version='unified_small'),
        **kwargs,
    )


@expose_runner('unified_test', description='Tiny: every kind of part, 2 layers, 64 wide, for quick tests.')
def runner_test(*args, **kwargs):
    return BasicModelRunner(
        UnifiedGPT2,
        *args,
        overrides=dict(
            num_blocks=2,
            embed_dim=64,
            num_heads=2,
            max_len=128,
            embedding='unified',
            front_embed_mul=2.0,
            linear='dulinear',
            exp_mul=1.0,
            residual='lradd_simple',
            value_norm=True,
            version='unified_test',
        ),
        **kwargs,
    )
