"""Pixel Perfect: the Segment Anything Model in JAX, for medical images."""

__version__ = "0.1.0"
