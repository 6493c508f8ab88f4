"""lmp_new: a new experiment as a copy of another."""
