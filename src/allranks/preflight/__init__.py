"""Checks of the nodes before a run: pure functions of what is known of them, to findings."""
