"""Checkpoints on disk: where they lie, when they count as committed, what is in them. Only `dcp/` knows of torch."""
