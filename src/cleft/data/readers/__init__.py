"""Readers, one module per dataset."""
