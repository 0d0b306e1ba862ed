"""From image files to prepared squares, decoded once, and to views of them."""
