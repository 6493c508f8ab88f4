from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner

from .model import UpcycledLM

# As in the moe-emergence study; it took 5,000 steps (dense), 10,000 (MoE) and 2,000 (no load balance).
STUDY = dict(
    init_from='pretrained:gpt2',
    lr=5e-5,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    decay_all=True,
    clip=1.0,
    schedule='cosine',
    warmup=0.1,
    warmup_from_zero=True,
    batch_size=8,
    mini_batch_size=2,
    row_length=512,
)

LLAMA = dict(family='llama', attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0)
SMOLLM2 = LLAMA | dict(
    num_blocks=30,
    embed_dim=576,
    num_heads=9,
    max_len=2048,  # of 8,192: the check before a run takes the whole length
    vocab_size=49152,
    rope_theta=100_000.0,
    tokenizer='bytes',  # until the weights bring theirs, which is not shipped
)
SMOLLM2_START = dict(init_from='pretrained:HuggingFaceTB/SmolLM2-135M')


@expose_runner('gpt2_dense', description='Pretrained GPT-2 as it is: the dense baseline of gpt2_moe.')
def runner_dense(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=dict(moe_layers='none', lb_coef=0.0, z_coef=0.0, noise_std=0.0, version='gpt2_dense'),
        training=STUDY,
        **kwargs,
    )


@expose_runner(
    'gpt2_moe',
    description='Pretrained GPT-2, the MLPs of its last 4 blocks upcycled to 8 experts each, one per token.',
)
def runner(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM, *args, overrides=dict(), training=STUDY | dict(on_collapse='warn'), **kwargs
    )


@expose_runner(
    'gpt2_moe_nolb',
    description='Ablation of gpt2_moe: no load-balance loss, no noise; stops when the routing collapses.',
)
def runner_nolb(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=dict(lb_coef=0.0, noise_std=0.0, version='gpt2_moe_nolb'),
        training=STUDY | dict(on_collapse='stop'),
        **kwargs,
    )


@expose_runner('gpt2_moe_top2', description='gpt2_moe with two experts per token.')
def runner_top2(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=dict(top_k=2, version='gpt2_moe_top2'),
        training=STUDY | dict(on_collapse='warn'),
        **kwargs,
    )


@expose_runner(
    'gpt2_moe_test',
    description='Tiny gpt2_moe with fresh weights: 4 layers, 64 wide, 2 heads, for quick tests.',
)
def runner_test(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=dict(
            num_blocks=4, embed_dim=64, num_heads=2, max_len=128, moe_layers='last 2', version='gpt2_moe_test'
        ),
        training=dict(on_collapse='warn'),
        **kwargs,
    )


@expose_runner(
    'llama_dense', description='Pretrained SmolLM2-135M as it is: the dense baseline of llama_moe.'
)
def runner_llama_dense(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=SMOLLM2
        | dict(moe_layers='none', lb_coef=0.0, z_coef=0.0, noise_std=0.0, version='llama_dense'),
        training=STUDY | SMOLLM2_START,
        **kwargs,
    )


@expose_runner(
    'llama_moe',
    description='SmolLM2-135M, the MLPs of its last 4 blocks upcycled to 8 experts each, one per token.',
)
def runner_llama(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=SMOLLM2 | dict(version='llama_moe'),
        training=STUDY | SMOLLM2_START | dict(on_collapse='warn'),
        **kwargs,
    )


@expose_runner(
    'llama_moe_nolb',
    description='Ablation of llama_moe: no load-balance loss, no noise; stops when the routing collapses.',
)
def runner_llama_nolb(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=SMOLLM2 | dict(lb_coef=0.0, noise_std=0.0, version='llama_moe_nolb'),
        training=STUDY | SMOLLM2_START | dict(on_collapse='stop'),
        **kwargs,
    )


@expose_runner('llama_moe_top2', description='llama_moe with two experts per token.')
def runner_llama_top2(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=SMOLLM2 | dict(top_k=2, version='llama_moe_top2'),
        training=STUDY | SMOLLM2_START | dict(on_collapse='warn'),
        **kwargs,
    )


@expose_runner(
    'llama_moe_test',
    description='Tiny llama_moe with fresh weights: 4 layers, 64 wide, 4 heads, for quick tests.',
)
def runner_llama_test(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=LLAMA
        | dict(
            num_blocks=4,
            embed_dim=64,
            num_heads=4,
            max_len=128,
            moe_layers='last 2',
            version='llama_moe_test',
        ),
        training=dict(on_collapse='warn'),
        **kwargs,
    )


@expose_runner(
    'pythia_moe',
    description='Pythia-160M, the MLPs of its last 4 blocks upcycled to 8 experts each, one per token.',
)
def runner_pythia(*args, **kwargs):
    return BasicModelRunner(
        UpcycledLM,
        *args,
        overrides=dict(
            family='gpt_neox',
            max_len=2048,
            vocab_size=50304,
            attn_dropout=0.0,
            ff_dropout=0.0,
            embed_dropout=0.0,
            version='pythia_moe',
        ),
        training=STUDY | dict(init_from='pretrained:EleutherAI/pythia-160m', on_collapse='warn'),
        **kwargs,
    )
