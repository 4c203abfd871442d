"""A cluster on one machine, made of real parts: see README.md beside this file."""

from tests.cluster.lab.ground import missing
from tests.cluster.lab.lab import Lab
from tests.cluster.lab.node import CommandFailed, Node, NodeProcess

__all__ = ["CommandFailed", "Lab", "Node", "NodeProcess", "missing"]
