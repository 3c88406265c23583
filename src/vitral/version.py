"""The one place of the version (the build reads it from here, also without an installed package)."""

__version__ = "0.1.0"
