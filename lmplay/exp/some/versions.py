from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner

from .model import SoME, SoMEBaseline


@expose_runner(
    'some',
    description='Self-organizing mixture of experts: 128 frozen experts per layer, moving keys.',
)
def runner(*args, **kwargs):
    return BasicModelRunner(SoME, *args, overrides=dict(), **kwargs)


@expose_runner(
    'some_baseline',
    description='The GPT-2-style baseline of the SoME publication: the same backbone with an MLP.',
)
def runner_baseline(*args, **kwargs):
    return BasicModelRunner(SoMEBaseline, *args, overrides=dict(), **kwargs)


@expose_runner('some_test', description='Tiny some: 2 layers, 64 wide, 16 experts, for quick tests.')
def runner_test(*args, **kwargs):
    return BasicModelRunner(
        SoME,
        *args,
        overrides=dict(
            num_blocks=2,
            embed_dim=64,
            num_heads=2,
            num_experts=16,
            top_k=4,
            max_len=128,
            warmup_steps=10,
            version='some_test',
        ),
        **kwargs,
    )


@expose_runner(
    'some_no_alpha', description='Ablation of some: keys are not attracted to the queries that choose them.'
)
def runner_no_alpha(*args, **kwargs):
    return BasicModelRunner(SoME, *args, overrides=dict(alpha=0.0, version='some_no_alpha'), **kwargs)


@expose_runner(
    'some_no_beta', description='Ablation of some: keys chosen together do not pull on each other.'
)
def runner_no_beta(*args, **kwargs):
    return BasicModelRunner(SoME, *args, overrides=dict(beta=0.0, version='some_no_beta'), **kwargs)


@expose_runner('some_no_delta', description='Ablation of some: unused keys do not decay.')
def runner_no_delta(*args, **kwargs):
    return BasicModelRunner(SoME, *args, overrides=dict(delta=0.0, version='some_no_delta'), **kwargs)


@expose_runner('some_static', description='Ablation of some: the keys never move.')
def runner_static(*args, **kwargs):
    return BasicModelRunner(
        SoME, *args, overrides=dict(alpha=0.0, beta=0.0, delta=0.0, version='some_static'), **kwargs
    )


@expose_runner(
    'some_v7',
    description="some by its authors' later rules (version 7): MLP router, clamped keys, faded ones respawn.",
)
def runner_v7(*args, **kwargs):
    later = dict(router='mlp', router_mlp_mult=2.0, peer_inertia='max', key_norm='clamp', delta=0.005)
    return BasicModelRunner(
        SoME, *args, overrides=dict(**later, respawn_threshold=0.1, version='some_v7'), **kwargs
    )
