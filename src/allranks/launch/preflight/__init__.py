"""What is checked on all nodes before a run: asked of each, judged in one place, told to all."""
