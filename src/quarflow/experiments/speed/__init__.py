"""Benchmarks: models side by side in processes of their own, and how near they are to the limit.

``quarflow bench`` compares what needs no other library; ``benchmarks/speed.py`` of the source tree
adds the peers. Importing this package is light: torch is imported where it is used.
"""

from __future__ import annotations
