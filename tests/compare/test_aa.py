"""The A/A trial of benchmarks/aa.py at its smallest: a shifted stream gives other runs on the same data."""

import numpy as np
import torch

from benchmarks.aa import experiment, false_alarms
from lmplay.base.runner_list import find_runner
from lmplay.compare.judge import compare_pair


def test_a_shifted_stream_is_the_same_method_with_other_parameters(tmp_path):
    versions = str(experiment(tmp_path))
    assert versions == str(experiment(tmp_path))  # made once

    def build(shift):
        torch.manual_seed(0)
        small = dict(num_blocks=1, embed_dim=8, num_heads=2, max_len=8, tokenizer='bytes')
        return find_runner(versions).function(**small, shift=shift).build()

    first, again, shifted = build(0), build(0), build(1)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), shifted.parameters()):
        assert torch.equal(a, b) and a.shape == c.shape
        assert torch.equal(a, c) == (a.std().item() == 0), name  # constants alone are alike


def test_equal_runs_are_within_noise_on_halves_of_the_text(trained, baseline):
    assert false_alarms(baseline, baseline, 3, trials=5) == {'within noise': 1.0}
    assert compare_pair(baseline, baseline, 'loss', 0.05)['verdict'] == 'within noise'
    assert np.isfinite([r.loss() for r in baseline]).all()
