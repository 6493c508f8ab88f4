"""lmp_routing: an X-ray of a model with experts: who serves what, since when, and how far each has moved."""
