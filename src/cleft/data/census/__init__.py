"""The dataset check: faults and a summary of a dataset, without training."""
