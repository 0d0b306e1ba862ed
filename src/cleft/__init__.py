"""cleft: CLIP-like models for medical images with a large language model as text tower."""
