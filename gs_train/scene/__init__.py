"""Scenes: cameras, photos and points, read from disk. NumPy, Pillow and, for undistortion, SciPy only; nothing else of ours but the errors."""
