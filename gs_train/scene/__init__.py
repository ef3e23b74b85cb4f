"""Scenes: cameras, photos and points, read from disk. NumPy and Pillow only; nothing else of ours but the errors."""
