"""Makes a COLMAP scene from photos or a video."""
