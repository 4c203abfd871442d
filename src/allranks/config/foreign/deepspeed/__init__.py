"""DeepSpeed's settings: reading its JSON, what each key becomes, and what it and the config say about each other."""

from allranks.config.foreign.deepspeed.read import read_into
from allranks.config.foreign.deepspeed.resolve import resolved
from allranks.config.foreign.deepspeed.rules import deepspeed_rules, deepspeed_warnings

__all__ = ["deepspeed_rules", "deepspeed_warnings", "read_into", "resolved"]
