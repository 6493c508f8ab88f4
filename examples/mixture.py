"""A dense model, upcycled to a mixture of experts: which expert does what, and what either writes.

    python examples/mixture.py
    python examples/mixture.py stories/ --tokens 2000000

Trains a small GPT-2, by default on code, prose and worded problems, turns its upper MLP into four experts,
trains on, and writes the X-ray of the experts: runs/mixture/routing/index.html.
"""

import argparse

import lmplay

SHAPE = dict(num_blocks=2, embed_dim=128, num_heads=4, max_len=128)


def plan_for(data: str, tokens: int) -> dict:
    """Three quarters of the tokens for the dense model, the rest for the mixture that begins as its copy."""
    stage = {'dataset': data, 'batch_size': 16, 'mini_batch_size': 16, 'row_length': 128, 'lr': 2e-3}
    dense = {'exp': 'gpt2_dense', 'init_from': 'scratch', 'tokens': tokens * 3 // 4, 'model': SHAPE}
    experts = dict(num_experts=4, top_k=1, moe_layers='last 1')
    upcycled = {
        'exp': 'gpt2_moe',
        'init_from': 'stage:dense',
        'tokens': tokens // 4,
        'model': SHAPE | experts,
    }
    return {
        'tokenizer': {'type': 'bpe', 'vocab_size': 2048, 'documents': 3000},
        'stages': {'dense': stage | dense, 'mixture': stage | upcycled},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Upcycles a dense model and looks at its experts.')
    parser.add_argument('data', nargs='?', default='embedded', help='a file, a folder, a glob or a dataset')
    parser.add_argument('--tokens', type=int, default=400_000, help='of both stages together')
    parser.add_argument('--run-dir', default='runs/mixture')
    args = parser.parse_args(argv)
    run = lmplay.train(plan=plan_for(args.data, args.tokens), run_dir=args.run_dir)
    print(f'Held-out loss: {run.loss():.3f} nats per token')
    load = run.metrics('validation', 'expert_load').values[-1]  # (layers, experts)
    print('Share of the tokens, by expert:', *(f'{share:.2f}' for share in load[0]))
    print(f'X-ray: {lmplay.xray(run.folder).page}')
    prompt = 'The '
    for stage in run.stages:
        for temperature in (0, 0.8):
            saved = run.checkpoints / f'stage-{stage}'
            text = lmplay.generate(saved, prompt, max_new_tokens=40, temperature=temperature)
            print(f'--- {stage}, temperature {temperature}\n{prompt}{text}')


if __name__ == '__main__':
    main()
