"""Start a run: check what was asked, prepare the data, start torchrun, watch over it, tell how it ended.

Import its modules by name; this file imports nothing, so that `--help` stays quick."""
