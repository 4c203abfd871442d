"""Which machines? Host sets such as `node[0-63],gpu7` and host files, as a checked list of hosts in the order given."""

import ipaddress
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from allranks.errors import UsageError

MAX_HOSTS = 65536  # a slip such as node[0-99999999] must not fill the memory

# What ssh, sbatch and /etc/hosts agree on; a leading `-` would be an option of ssh.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")
# The part of ClusterShell's syntax that names hosts; its set operators and groups are not for a job's ranks.
_SET = re.compile(r"(?:[A-Za-z0-9._-]|\[[0-9][0-9,/-]*\])+")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?(?:/(\d{1,9}))?")


@dataclass(frozen=True)
class Host:
    """A machine by the name that reaches it. `slots`: processes that it takes, None where nobody said.
    `user`: the login name, None for ssh's own choice."""

    name: str
    slots: int | None = None
    user: str | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.name}" if self.user else self.name


def parse_hosts(text: str, *, source: str = "--hosts") -> list[Host]:
    """The hosts of `node[0-63],gpu7,me@10.0.0.5,fe80::1`, in the order given; the first is node 0.

    Raises UsageError, which begins with `source`, for an empty list, a name that is none, and one that comes twice.
    """
    hosts = [host for item in _split(text) for host in _expand(item, source)]
    if not hosts:
        raise UsageError(f"{source}: no host in {text!r}; expected a list such as node[0-3],gpu7")
    if len(hosts) > MAX_HOSTS:
        raise UsageError(f"{source}: {len(hosts)} hosts; expected at most {MAX_HOSTS}")
    _refuse_repeated([(source, host) for host in hosts])
    return hosts


def read_hostfile(path: str | Path, *, repeated: bool = False) -> list[Host]:
    """The hosts of a file: one host (or set) a line, perhaps with `slots=N` (Open MPI, DeepSpeed) or `:N` (MPICH), `#`
    comments.

    With `repeated`, as in a node file of PBS, a host may come on several lines and counts once. Raises UsageError with
    file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"host file {path} cannot be read: {reason}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            place = f"{path}:{number}"
            found += [(place, host) for host in _read_line(text, place)]
            if len(found) > MAX_HOSTS * 64:
                raise UsageError(f"{place}: more than {MAX_HOSTS} hosts")
    if not found:
        raise UsageError(f"{path}: no host in it; expected one a line, such as `node0 slots=8`")
    if repeated:
        return list({host.name: host for _, host in found}.values())  # a dict keeps the place of the first
    _refuse_repeated(found)
    return [host for _, host in found]


def _read_line(text: str, place: str) -> list[Host]:
    name, *settings = text.split()
    slots = None
    if (match := re.fullmatch(r"([^:]+):(\d+)", name)) is not None:
        name, slots = match[1], _slots(match[2], place)
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in ("slots", "cpu"):
            if slots is not None:
                raise UsageError(f"{place}: the number of slots is given twice in {text!r}")
            slots = _slots(value, place)
        elif key not in ("max_slots", "max-slots"):  # Open MPI's bound for oversubscription; no rank shares a GPU here
            raise UsageError(f"{place}: {setting!r} is not understood; expected `HOST slots=N`")
    hosts = [host for item in _split(name) for host in _expand(item, place)]
    return [replace(host, slots=slots) for host in hosts]


def _slots(value: str, place: str) -> int:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:10]) <= 4096:
        raise UsageError(f"{place}: slots={value}: expected a number of processes from 1 to 4096")
    return int(value)


def _split(text: str) -> list[str]:
    """At commas outside of brackets. Each item is expanded alone, because ClusterShell sorts what it is given at once,
    and the order says who is node 0."""
    items = re.split(r",(?![^\[\]]*\])", text)
    return [item.strip() for item in items if item.strip()]


def _expand(item: str, source: str) -> list[Host]:
    user, at, rest = item.rpartition("@")
    if item.startswith("@"):
        raise UsageError(f"{source}: {item!r}: groups are not supported; name the hosts, such as node[0-3]")
    if at and not _USER.fullmatch(user):
        raise UsageError(f"{source}: {item!r}: {user!r} is not a login name")
    address = _ipv6(rest)
    names = [address] if address else _expand_set(rest, item, source)
    for name in names:
        if not _NAME.fullmatch(name) and not address:
            raise UsageError(f"{source}: {name!r} is not a host name: it starts with {name[:1]!r}")
    return [Host(name, user=user or None) for name in names]


def _ipv6(text: str) -> str | None:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.IPv6Address(bare)
    except ValueError:
        return None
    zone = address.scope_id
    return bare if zone is None or _NAME.fullmatch(zone) else None


def _expand_set(text: str, item: str, source: str) -> list[str]:
    if not _SET.fullmatch(text) or len(text) > 65536:
        raise UsageError(
            f"{source}: {item!r} is not a host name: expected letters, digits, `.`, `_`, `-` and ranges such as [0-3]"
        )
    if "[" not in text:
        return [text]
    sizes = [sum(_size(part, item, source) for part in found.split(",")) for found in re.findall(r"\[(.*?)\]", text)]
    if math.prod(sizes) > MAX_HOSTS:
        raise UsageError(f"{source}: {item!r} is {math.prod(sizes)} hosts; expected at most {MAX_HOSTS}")
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetParseError

    try:
        # Without the resolver it reads no group configuration, which may run commands.
        names = list(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetParseError as error:
        raise UsageError(f"{source}: {item!r}: {error}") from None
    if len(names) != math.prod(sizes):
        raise UsageError(f"{source}: {item!r} names a host twice")
    return names


def _size(part: str, item: str, source: str) -> int:
    match = _RANGE.fullmatch(part)
    if match is None or int(match[2] or match[1]) < int(match[1]) or match[3] == "0":
        raise UsageError(f"{source}: {item!r}: {part!r} is not a range; expected FIRST-LAST such as [0-3]")
    return (int(match[2] or match[1]) - int(match[1])) // int(match[3] or 1) + 1


def _refuse_repeated(found: list[tuple[str, Host]]) -> None:
    places: dict[str, str] = {}
    for place, host in found:
        if host.name in places:
            first = f", first at {places[host.name]}" if places[host.name] != place else ""
            raise UsageError(
                f"{place}: {host.name} comes twice{first}: name each host once (`slots=N` says how many processes)"
            )
        places[host.name] = place
