"""Camera models, lens distortion and poses. NumPy only."""
