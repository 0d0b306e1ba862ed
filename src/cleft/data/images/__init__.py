"""Images: opening, decoding, preprocessing and caching."""
