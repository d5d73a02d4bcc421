"""Exact-likelihood density estimation with quasi-autoregressive residual (QuAR) flows."""

from quarflow._version import __version__

__all__ = ["__version__"]
