"""Version of the package: here, so that modules need not import `cleft` itself; pyproject.toml reads it."""

__version__ = "0.2.0"
