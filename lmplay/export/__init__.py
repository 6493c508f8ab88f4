"""Export of trained models for use elsewhere."""
