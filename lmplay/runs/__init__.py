"""The run directory as a format: who writes it, who reads it."""
