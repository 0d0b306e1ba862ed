"""From a table of the paper to runs, and from runs to a page."""
