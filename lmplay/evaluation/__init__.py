"""Tasks of lm-evaluation-harness over a trained model: lmp_eval, and `evaluate(...)` from Python (api.py)."""
