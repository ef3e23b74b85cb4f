"""The Gaussians, their learning rates and the one door to their optimizer."""
