"""Photos or a video to a COLMAP scene."""
