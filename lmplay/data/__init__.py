"""Text to batches of tokens: tokenizers, sources, corpus, store, mixture, batches."""
