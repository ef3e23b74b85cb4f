"""Measuring a trained run on views it has not seen."""
