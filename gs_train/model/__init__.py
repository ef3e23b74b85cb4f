"""The Gaussian model: its parameters, initialisation, learning rates and Adam optimizer."""
