"""The training loop, its state, its checkpoints and its log."""
