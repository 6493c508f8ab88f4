"""lmp_compare: did the change help? Fair runs of experiments, their statistics, and the report."""
