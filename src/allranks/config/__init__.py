"""The config: one YAML file with Axolotl's flat keys, read once into typed sections."""

from allranks.config.load import load_config
from allranks.config.run import RunConfig

__all__ = ["RunConfig", "load_config"]
