"""From batches to embeddings."""
