"""Checkpoints on disk: where they lie, when they count as committed, what verifies them. Knows nothing of torch."""
