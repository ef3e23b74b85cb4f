"""Scenes: cameras, photos and points, read from disk. NumPy, Pillow and SciPy (to undistort) only; nothing else of ours but the errors."""
