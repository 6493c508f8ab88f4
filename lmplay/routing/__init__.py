"""lmp_routing: an X-ray of a model with experts: which serves what, how that developed, how far each has moved."""
