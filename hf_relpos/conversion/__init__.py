"""From ordinary models and checkpoints to ones with relative positions."""
