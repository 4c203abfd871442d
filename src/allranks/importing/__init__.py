"""Configs of other trainers (TRL, LLaMA-Factory, ms-swift) as configs of ours: the same training in our words."""

from allranks.importing.imported import Imported
from allranks.importing.read import import_config

__all__ = ["Imported", "import_config"]
