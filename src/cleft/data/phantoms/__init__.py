"""From a seed to drawn images in the layout of a real download."""
