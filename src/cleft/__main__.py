"""`python -m cleft` is the command `cleft`."""

from cleft.cli import entry

entry()
