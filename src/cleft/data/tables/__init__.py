"""From the bytes of a table to typed rows, with everything that is wrong told at once."""
