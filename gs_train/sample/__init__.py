"""The procedural sample scene."""
