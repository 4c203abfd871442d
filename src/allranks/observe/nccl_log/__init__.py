"""What NCCL (2.18 to 2.32) writes into its log: communicators, networks, and how each pair of ranks talks."""

from allranks.observe.nccl_log.parse import parse, read_log
from allranks.observe.nccl_log.records import Card, Communicator, Link, NcclLog, from_message, to_message

__all__ = ["Card", "Communicator", "Link", "NcclLog", "from_message", "parse", "read_log", "to_message"]
