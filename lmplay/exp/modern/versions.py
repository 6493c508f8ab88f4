from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner

from .model import Modern


@expose_runner(
    'modern', description='Llama-shaped baseline: RMSNorm, SwiGLU, rotary positions, grouped keys.'
)
def runner(*args, **kwargs):
    return BasicModelRunner(Modern, *args, overrides=dict(), **kwargs)


@expose_runner('modern_test', description='Tiny: 2 layers, 64 wide, 4 heads, for quick tests.')
def runner_test(*args, **kwargs):
    return BasicModelRunner(
        Modern,
        *args,
        overrides=dict(num_blocks=2, embed_dim=64, num_heads=4, max_len=128, version='modern_test'),
        **kwargs,
    )


@expose_runner('smollm2_135m', description='Pretrained SmolLM2-135M: 30 layers, 576 wide, 9 heads.')
def runner_smollm2(*args, **kwargs):
    return BasicModelRunner(
        Modern,
        *args,
        overrides=dict(
            num_blocks=30,
            embed_dim=576,
            num_heads=9,
            max_len=2048,  # of 8,192: the check before a run takes the whole length
            rope_theta=100_000.0,
            tied_head=True,
            vocab_size=49152,
            tokenizer='bytes',  # until the weights bring theirs, which is not shipped
            version='smollm2_135m',
        ),
        training=dict(
            init_from='pretrained:HuggingFaceTB/SmolLM2-135M',
            lr=5e-5,
            weight_decay=0.01,
            schedule='cosine',
            warmup=0.1,
            row_length=512,
        ),
        **kwargs,
    )
