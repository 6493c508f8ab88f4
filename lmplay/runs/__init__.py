"""The run directory as a format: its writers and readers."""
