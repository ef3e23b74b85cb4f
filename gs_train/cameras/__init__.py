"""Camera intrinsics, lens distortion and poses, in NumPy."""
