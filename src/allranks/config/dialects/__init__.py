"""Other interfaces' words for a config: each turns them into our keys."""
