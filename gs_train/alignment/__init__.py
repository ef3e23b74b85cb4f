"""Photometric alignment of cameras: to a photo of a known splat, to coloured points, and of one rig to another."""
