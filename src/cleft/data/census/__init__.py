"""From a folder to everything that can be known of it without training."""
