"""Shows splats in a browser: an offline page of our own, and its server."""
