"""Checkpoints that other systems' authors published, one file a method."""
