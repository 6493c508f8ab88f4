"""What a run records, and the pictures made of it."""
