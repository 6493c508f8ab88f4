"""lmp_routing: an X-ray of a model with experts. Which expert serves what, how that came to be, what the experts became."""
