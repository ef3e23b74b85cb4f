"""Scenes: cameras, photos and points, read from disk without torch (except ``photos.composite``)."""
