"""Captions, prompts and reports: the texts that belong to images."""
