"""The system's OpenSSH: the user's keys, config, known hosts and jump hosts apply; nobody is asked for a password."""

import shlex
import socket
from collections.abc import Sequence

from allranks.cluster.link import NotOpened
from allranks.cluster.nodes import Host

FAILED = 255
"""ssh's own exit status where it could not connect (ssh(1)); before an agent's hello nothing else explains it."""

_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=8",  # a node that does not answer is to be told within 10 s
    # A node without power sends no FIN: the connection is given up after 10 s of silence.
    "ServerAliveInterval=5",
    "ServerAliveCountMax=2",
    # What a user's config may say for a session at a terminal, and what would break ours.
    "RequestTTY=no",
    "RemoteCommand=none",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
)
# sshd, or a jump host, that turned a connection away because too many were being made (MaxStartups).
_BUSY = ("kex_exchange_identification", "Connection reset by", "Connection closed by", "ssh_exchange_identification")
_ADVICE = {
    "Permission denied": "this account needs a key that works without a password: ssh-copy-id HOST",
    "Host key verification failed": "its key is not among the known hosts: connect once by hand, and compare it",
    "Invalid argument": "a link-local address needs its interface: fe80::1%eth0",
    "Could not resolve hostname": "check the spelling, /etc/hosts and ~/.ssh/config",
}


def ssh_command(host: Host, agent: Sequence[str]) -> list[str]:
    """The only words that a remote shell ever reads are those of `agent`: all else crosses on stdin, where neither a
    shell nor `ps` sees it. One session carries all that is asked of the node, so connections need not be shared."""
    words = ["ssh", "-T", *(word for option in _OPTIONS for word in ("-o", option))]
    if host.user:
        words += ["-l", host.user]
    return [*words, "--", host.name, f"exec {shlex.join(agent)}"]


def is_this_machine(host: Host) -> bool:
    """Then no ssh is needed, and many a machine has no key for itself."""
    if host.user:
        return False
    name = socket.gethostname()
    return host.name in ("localhost", "127.0.0.1", "::1", name, name.partition(".")[0]) or host.name in _own_addresses()


def is_busy(error: NotOpened) -> bool:
    """Is it worth another try?"""
    return error.returncode == FAILED and any(text in error.tail for text in _BUSY)


def explain(said: str) -> str:
    advice = next((advice for text, advice in _ADVICE.items() if text in said), "")
    return f"ssh says: {said or 'nothing'}" + (f" ({advice})" if advice else "")


def _own_addresses() -> set[str]:
    import psutil

    return {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
