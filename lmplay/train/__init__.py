"""lmp_trainer: plans, stages, the one training loop, its objective, optimizers, checkpoints, evaluation."""
