"""One program for each way to train the same model on the same data; each runs in a process of its own."""
