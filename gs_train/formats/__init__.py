"""Splat files. NumPy and plyfile only, no torch."""
