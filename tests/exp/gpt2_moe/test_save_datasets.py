def test_save_datasets_fetches_pretrained_weights_too(command, tiny_plan):
    """Without a network and without a cache it says so; the data alone would not be all that the plan
    needs."""
    plan = tiny_plan({'s': {'init_from': 'pretrained:gpt2'}})
    size = ['--num-blocks', '1', '--embed-dim', '16', '--num-heads', '2']
    out = command(
        'train',
        '--exp',
        'gpt2_dense',
        *size,
        '--training-plan',
        plan,
        '--save-datasets',
        env={'HF_HUB_OFFLINE': '1', 'HF_HOME': str(plan.parent / 'hf')},
    )
    assert out.returncode == 2 and "'gpt2'" in out.stderr and '--initial-model' in out.stderr
