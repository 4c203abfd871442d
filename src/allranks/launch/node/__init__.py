"""This node's ranks: its place in the run, its launcher and the watch over it."""
