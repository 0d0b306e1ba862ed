"""From embeddings to weights."""
