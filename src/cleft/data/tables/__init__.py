"""CSV tables of datasets: from bytes to typed rows, with all faults collected."""
