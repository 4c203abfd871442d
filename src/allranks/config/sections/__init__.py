"""The sections of a config. Each flat key belongs to exactly one of them."""
