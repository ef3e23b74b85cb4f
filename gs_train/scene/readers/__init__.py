"""Readers of scene formats. ``registry.py`` lists them."""
