"""A trained model, or any other, in use: its loss on a data set, and its answers."""
