"""From text to batches of tokens: sources, token store, sequences, mixture, held-out documents."""
