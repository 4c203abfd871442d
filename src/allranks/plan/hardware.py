"""What devices and links could do at best, as their makers state it: hardware.toml, or a file of the user's own."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from allranks.errors import ConfigError

_OURS = Path(__file__).parent / "hardware.toml"
_GIB = 2**30
_LARGEST = 1e30  # of any number in such a file
# A part of a GPU, or one with other clocks and memory, whose name holds that of the whole one.
_NOT_THE_WHOLE = re.compile(r"\bMIG\b|\bLaptop\b|\bMax-Q\b")
# What the names that drivers give begin with.
_MAKERS = re.compile(r"NVIDIA|Tesla|GeForce|AMD", re.IGNORECASE)
_PORTS = re.compile(r"([1-9]\d*)x(?=[a-z0-9])")
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?([mg])(bit|b)(?:ps|/s)?", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """Operations a second are dense peaks; `bandwidth` is that of its memory in bytes a second. `link`: the name of
    what joins the devices of one node. `matmul`: the part of the peak that the best matrix product reaches."""

    name: str
    title: str
    memory_bytes: float
    bandwidth: float
    bf16: float
    tf32: float
    fp32: float
    link: str
    matmul: float
    reported: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str = ""
    file: Path | None = None
    """The user's own file that it stands in, where its link may, too."""

    def peak(self, *, half: bool) -> float:
        """Operations a second of the matrix units, on 16 bits or on float32 through TF32."""
        return self.bf16 if half else self.tf32


@dataclass(frozen=True)
class Link:
    """What a node, or within one a device, sends in one direction: `bytes_per_second` is the line rate, of which long
    collectives reach the part `achieved`. `ports` of them side by side, whose rates are added up already."""

    name: str
    title: str
    bytes_per_second: float
    latency_seconds: float
    achieved: float
    ports: int = 1
    aliases: tuple[str, ...] = ()
    source: str = ""


_Entry = TypeVar("_Entry", bound=Device | Link)


def find_device(name: str, file: Path | None = None) -> Device:
    """The device of that name: as in hardware.toml (`h100-80gb`), or as torch and nvidia-smi report it. `file` is a
    user's own in the same form, which goes first.

    Raises ConfigError, which says which there are.
    """
    known = _devices(file)
    if (found := _named(name, known)) is not None:
        return found
    if (found := _reported(name, known)) is not None and (found.file or _is_a_drivers(name, found)):
        return found
    raise ConfigError(
        f"no device {name!r} is known{_near(name, known)}; known are {', '.join(one.name for one in known)}. "
        "Another can be described in a file of its own (--device-file; docs/plan.md shows one)"
    )


def find_reported(name: str) -> Device | None:
    """The device that torch or nvidia-smi reports so; None where it is not known."""
    return _reported(name, _devices(None))


def find_link(name: str, file: Path | None = None) -> Link:
    """The link of that name (`ib-ndr`, `nvlink4`), or one of that rate (`100gbit`: Ethernet, over TCP); `8xib-ndr` are
    eight of them on each node.

    Raises ConfigError, which says which there are.
    """
    known, asked = _links(file), name.strip().lower()
    several = _PORTS.match(asked)
    ports, one = (int(several[1]), asked[several.end() :]) if several else (1, asked)
    found = _named(one, known) or _of_rate(name.strip()[several.end() if several else 0 :])
    if found is None:
        raise ConfigError(
            f"no link {name!r} is known{_near(one, known)}; known are {', '.join(link.name for link in known)}, "
            "a rate such as 25gbit, and several ports on each node, such as 8xib-ndr"
        )
    if ports == 1:
        return found
    return replace(
        found,
        name=f"{ports}x{found.name}",
        title=f"{ports} x {found.title}",
        bytes_per_second=ports * found.bytes_per_second,
        ports=ports,
    )


def _of_rate(text: str) -> Link | None:
    """Ethernet of any rate, with what is known of the next slower one."""
    match = _RATE.fullmatch(text)
    if match is None:
        return None
    bits = 8 if match[3] == "B" else 1  # 12.5GB/s are bytes, 100Gb/s and 100gbit bits
    gigabits = bits * float(match[1]) / (1000 if match[2].lower() == "m" else 1)
    if not gigabits:
        return None
    ethernet = [one for one in _links(None) if one.name.startswith("ethernet-")]
    rate = gigabits * 1e9 / 8
    slower = [one for one in ethernet if one.bytes_per_second <= rate] or ethernet[:1]
    like = max(slower, key=lambda one: one.bytes_per_second)
    title = f"Ethernet, {bits * float(match[1]):g} {match[2].upper()}bit/s, over TCP"
    return replace(like, name=text.lower(), title=title, bytes_per_second=rate, aliases=())


def _named(name: str, known: Iterable[_Entry]) -> _Entry | None:
    plain = _plain(name)
    for one in known:
        if plain in map(_plain, (one.name, *one.aliases)):
            return one
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def _reported(name: str, known: Iterable[Device]) -> Device | None:
    if _NOT_THE_WHOLE.search(name):
        return None
    words = [
        (len(word), one)
        for one in known
        for word in one.reported
        if re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])", name.lower())
    ]
    return max(words, key=lambda found: found[0])[1] if words else None


def _is_a_drivers(name: str, device: Device) -> bool:
    """Not a slip for one of our names: `h100-8gb` holds `h100` too, and is nobody's."""
    return bool(_MAKERS.match(name.strip())) or _plain(name) in map(_plain, device.reported)


def _near(name: str, known: Iterable[Device | Link]) -> str:
    names = [word for one in known for word in (one.name, *one.aliases)]
    close = difflib.get_close_matches(_plain(name), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _devices(file: Path | None) -> tuple[Device, ...]:
    own = tuple(_device(file, name, given) for name, given in _table(file, "devices").items()) if file else ()
    return own + tuple(_device(_OURS, name, given) for name, given in _table(_OURS, "devices").items())


@cache
def _links(file: Path | None) -> tuple[Link, ...]:
    own = tuple(_link(file, name, given) for name, given in _table(file, "links").items()) if file else ()
    return own + tuple(_link(_OURS, name, given) for name, given in _table(_OURS, "links").items())


def _table(file: Path, key: str) -> Mapping[str, Any]:
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as TOML: {error}") from None
    table = read.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(one, dict) for one in table.values()):
        raise ConfigError(f"{file}: [{key}] is no table of tables; write [{key}.NAME] above the values of each")
    return table


def _device(file: Path, name: str, given: Mapping[str, Any]) -> Device:
    at = f"{file}: [devices.{name}]"
    _refuse_unknown(at, given, ("title", "aliases", "reported", "memory_gib", *_RATES, "matmul", "link", "source"))
    bandwidth, bf16, tf32, fp32 = (_number(at, given, key) for key in _RATES)
    return Device(
        *(name, str(given.get("title", name)), _number(at, given, "memory_gib") * _GIB),
        *(bandwidth, bf16, tf32, fp32),
        link=str(given.get("link", "pcie4")),
        matmul=_part(at, given, "matmul") if "matmul" in given else _USUAL_MATMUL,
        reported=_words(at, given, "reported"),
        aliases=_words(at, given, "aliases"),
        source=str(given.get("source", "")),
        file=None if file == _OURS else file,
    )


_RATES = ("bandwidth", "bf16", "tf32", "fp32")
_USUAL_MATMUL = 0.8


def _link(file: Path, name: str, given: Mapping[str, Any]) -> Link:
    at = f"{file}: [links.{name}]"
    numbers = ("gigabytes_per_second", "latency_us", "achieved")
    _refuse_unknown(at, given, ("title", "aliases", *numbers, "source"))
    rate, latency, achieved = (*(_number(at, given, key) for key in numbers[:2]), _part(at, given, numbers[2]))
    return Link(
        *(name, str(given.get("title", name)), rate * 1e9, latency / 1e6, achieved),
        aliases=_words(at, given, "aliases"),
        source=str(given.get("source", "")),
    )


def _refuse_unknown(at: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{at}: {key} has no meaning here; known are {', '.join(known)}")


def _number(at: str, given: Mapping[str, Any], key: str) -> float:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise ConfigError(f"{at}: {key} has to be a number above 0, and is {value!r}")
    return float(value)


def _part(at: str, given: Mapping[str, Any], key: str) -> float:
    if (value := _number(at, given, key)) > 1:
        raise ConfigError(f"{at}: {key} is the part of the rate that is reached, at most 1, and is {value:g}")
    return value


def _words(at: str, given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"{at}: {key} has to be a list of names, and is {value!r}")
    return tuple(value)
