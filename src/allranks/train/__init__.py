"""The engine of one rank: loop, optimizer, checkpoints, signals. Imports nothing here: name its modules."""
