"""Photos: decoding, masks, cache, compositing."""
