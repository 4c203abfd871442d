"""What a run looks like while it hangs: gathered on each node within a bounded time, and read."""
