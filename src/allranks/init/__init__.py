"""`allranks init`: a first config, from a model, data, a method and a number of nodes."""

from allranks.init.first_config import first_config
from allranks.init.glance import Glance, glance

__all__ = ["Glance", "first_config", "glance"]
