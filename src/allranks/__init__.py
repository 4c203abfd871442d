"""allranks: fine-tune a language model on several machines, with every rank accounted for."""

__version__ = "0.1.0"
