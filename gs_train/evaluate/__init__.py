"""Metrics of a trained splat on held-out views."""
