"""Scenes too large for one training: blocks that are trained one by one or side by side, and merged."""
