"""Density control: watch the gradients, plan what to clone, split, drop and reset."""
