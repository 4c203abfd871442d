"""A tiny model, tokenizer and data set made from this Python installation, and a run that shows the whole road."""

from allranks.demo.files import DemoFiles, write_files

__all__ = ["DemoFiles", "write_files"]
