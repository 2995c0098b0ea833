"""The version of cmrhash, which pyproject.toml and ``import cmrhash`` take from here."""

__version__ = "0.1.0"
