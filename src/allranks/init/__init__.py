"""`allranks init`: a first config, from a model, data, a method and a number of nodes."""

from allranks.init.first_config import first_config, write_config
from allranks.init.glance import Glance, glance
from allranks.init.questions import ask, unquoted

__all__ = ["Glance", "ask", "first_config", "glance", "unquoted", "write_config"]
