"""From the lines of NCCL's log to what they mean. The formats are those of NCCL's sources, tags 2.18.1 to 2.30.7;
what a newer version words otherwise is passed over.

A communicator's name is its hash (commId); one that was split off another has none, and is named after that one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from allranks.listing import printable
from allranks.observe.nccl_log.lines import Line, messages
from allranks.observe.nccl_log.records import MOST, Card, Communicator, Link, NcclLog

# What is read of a file: its start, where ranks meet, and its end, where they fail.
_HALF_BYTES = 4 * 2**20
_MOST_TEXT = 400

_VERSION = re.compile(r"^NCCL version (\d+\.\d+\.\d+\S*)")
_COMM = re.compile(
    r"comm (?P<pointer>0x[0-9a-f]+|\S+) rank (?P<rank>\d+) n[rR]anks (?P<ranks>\d+) cudaDev (?P<cuda>-?\d+)"
    r"(?: nvmlDev (?P<nvml>-?\d+))? busId (?P<bus>[0-9a-f]+)"
    r"(?: commId (?P<id>0x[0-9a-f]+)"
    r"| parent (?P<parent>\S+)(?: (?:splitCount|childCount) (?P<count>\d+))? color (?P<color>-?\d+) key -?\d+)"
    r" ?- Init (?P<state>START|COMPLETE)"
)
_PAIR = r"(?P<source>\d+)\[[^\]]*\] -> (?P<target>\d+)\[[^\]]*\]"
_CHANNEL = re.compile(
    rf"^Channel \d+(?:/\d+)? : {_PAIR}(?: \[(?P<direction>send|receive)\])? via "
    r"(?P<transport>NET/[^/\s]+|P2P|SHM)(?:/(?P<rest>.*))?$"
)
_CARD = re.compile(r"\[(?P<number>\d+)\]\s*(?P<members>\{[^}]*\}|[^\s\[]+)")
_MADE_CARD = re.compile(r"^NET/IB : Made virtual device \[(\d+)\] name=(\S+) .*ndevs=(\d+)")
_SETTING = re.compile(r"^(NCCL_\w+) set (?:by environment )?to (.*?)\.?$")
_OUT_OF_BAND = re.compile(r"; OOB (\S+)$")
_GDR_OFF = re.compile(r"GPU Direct RDMA Disabled for (.*)$")
_NO_IB = re.compile(
    r"^NET/IB : No device found|Failed to open libibverbs|Failed to initialize NET plugin (?:IB|ib)\b"
    r"|ibv_get_device_list.*fail",
    re.IGNORECASE,
)
# Written as INFO, and yet the reason of what fails next.
_TROUBLE = re.compile(
    r"retrying|exceeded timeouts|timeout (?:warning|error)|giving up|async (?:fatal |error )?event|Got completion"
    r"|\.(?:cc|cu|h):\d+ -> [1-9]\d*$",
    re.IGNORECASE,
)


def read_log(path: Path) -> list[NcclLog]:
    """The processes that wrote into the file at `path`, those that wrote most first; [] if it holds no NCCL log.

    Of a very large file its start and its end are read. Raises OSError.
    """
    with path.open("rb") as file:
        start = file.read(_HALF_BYTES)
        size = file.seek(0, 2)
        if size > 2 * _HALF_BYTES:
            file.seek(-_HALF_BYTES, 2)
            return parse((start + b"\n" + file.read()).decode("utf-8", "replace"))
        file.seek(len(start))
        return parse((start + file.read()).decode("utf-8", "replace"))


def parse(text: str) -> list[NcclLog]:
    """The processes whose NCCL wrote `text`, those that wrote most first. Nothing in it makes this raise."""
    said: dict[tuple[str, int], list[Line]] = {}
    bare = ""
    for line in messages(text):
        if line.level == "VERSION":
            bare = line.text
        else:
            said.setdefault((line.host, line.pid), []).append(line)
    found = []
    for (host, pid), lines in sorted(said.items(), key=lambda entry: -len(entry[1])):
        log = _Process(host, pid).read(lines)
        # Only rank 0 of a node writes the version by itself.
        found.append(log if log.version or not bare else replace(log, version=_version(bare)))
    return found


def _version(text: str) -> str:
    match = _VERSION.match(text)
    return match[1] if match else ""


class _Process:
    """Collects what one process's lines say."""

    def __init__(self, host: str, pid: int) -> None:
        self.host, self.pid = host, pid
        self.version = self.out_of_band = ""
        self.networks: dict[str, None] = {}
        self.cards: dict[tuple[str, int], Card] = {}
        self.comms: dict[str, Communicator] = {}
        self.links: dict[tuple[object, ...], Link] = {}
        self.settings: dict[str, str] = {}
        self.no_infiniband: dict[str, None] = {}
        self.no_gdr: dict[str, None] = {}
        self.problems: dict[str, None] = {}
        self._keys: dict[str, str] = {}  # pointer -> key
        self._splits: dict[str, int] = {}
        self._of_thread: dict[int, str] = {}  # thread -> key of the communicator that it made last

    def read(self, lines: Iterable[Line]) -> NcclLog:
        for line in lines:
            self._read(line)
        return NcclLog(
            host=self.host,
            pid=self.pid,
            version=self.version,
            networks=tuple(self.networks)[:MOST],
            cards=tuple(self.cards.values())[:MOST],
            out_of_band=self.out_of_band,
            communicators=tuple(self.comms.values())[:MOST],
            links=tuple(self.links.values())[:MOST],
            settings=dict(list(self.settings.items())[:MOST]),
            no_infiniband=_bounded(self.no_infiniband),
            no_gdr=_bounded(self.no_gdr),
            problems=_bounded(self.problems),
        )

    def _read(self, line: Line) -> None:
        text = line.text
        if line.level == "WARN":
            self.problems[f"{line.where} {text}".strip()] = None
        elif _TROUBLE.search(text):
            self.problems[text] = None
        if match := _COMM.search(text):
            self._communicator(match, line.tid)
        elif match := _CHANNEL.match(text):
            self._channel(match, line.tid)
        elif text.startswith("Using network "):
            self.networks[text.removeprefix("Using network ").strip()] = None
        elif text.startswith(("NET/IB : Using", "NET/Socket : Using")):
            self._cards(text)
        elif match := _MADE_CARD.match(text):
            self._made_card(int(match[1]), match[2])
        elif match := _VERSION.match(text):
            self.version = match[1]
        elif match := _SETTING.match(text):
            self.settings[match[1]] = match[2]
        elif match := _GDR_OFF.search(text):
            self.no_gdr[f"Disabled for {match[1]}"] = None
        if _NO_IB.search(text):
            self.no_infiniband[text] = None

    def _communicator(self, match: re.Match[str], tid: int) -> None:
        pointer = match["pointer"]
        started = self._keys.get(pointer)
        if match["state"] == "COMPLETE" and started in self.comms and not self.comms[started].complete:
            key = started
        elif match["id"]:
            key = match["id"]
        else:
            of = f"{self._keys.get(match['parent'], '?')}/{match['color']}"
            number = match["count"]
            if number is None:  # before 2.25 the splits of a communicator are told apart by their order only
                number = str(self._splits.get(of, 0))
                self._splits[of] = int(number) + 1
            key = f"{of}.{number}"
        self._keys[pointer] = self._of_thread[tid] = key
        self.comms[key] = Communicator(
            key=key,
            rank=int(match["rank"]),
            num_ranks=int(match["ranks"]),
            nvml_device=int(match["nvml"] or match["cuda"]),
            bus_id=match["bus"],
            is_split=match["id"] is None,
            complete=match["state"] == "COMPLETE",
        )

    def _channel(self, match: re.Match[str], tid: int) -> None:
        source, target = int(match["source"]), int(match["target"])
        direction = match["direction"] or "send"
        rank, peer = (source, target) if direction == "send" else (target, source)
        transport, rest = match["transport"], (match["rest"] or "").split("/")
        card, kind, gdr = "", "", False
        if transport.startswith("NET/"):
            number = re.match(r"\d+", rest[0])
            if number is None:  # cut
                return
            known = self.cards.get((transport.removeprefix("NET/"), int(number[0])))
            card, kind = (known.name, known.link) if known else (number[0], "")
            gdr = any(part.startswith("GDRDMA") for part in rest[1:])
            kind = "" if transport == "NET/Socket" else kind
        key = self._key_of(rank, max(rank, peer), tid)
        place = (key, rank, peer, direction, transport, card, gdr)
        before = self.links.get(place)
        if before is None and len(self.links) >= MOST:
            return
        self.links[place] = Link(
            key, rank, peer, direction, transport, card, kind, gdr, before.channels + 1 if before else 1
        )

    def _key_of(self, rank: int, highest: int, tid: int) -> str:
        """The communicator that a channel belongs to, which its line does not tell: one in which this process has that
        rank; the one that this thread made, or else the newest."""
        own = self._of_thread.get(tid)
        candidates = [one for one in self.comms.values() if one.rank == rank and one.num_ranks > highest]
        if any(one.key == own for one in candidates):
            return own or ""
        return candidates[-1].key if candidates else ""

    def _cards(self, text: str) -> None:
        network = text.partition(" ")[0].removeprefix("NET/")
        listed, _, rest = text.partition("Using")[2].partition("; OOB ")
        if rest:
            self.out_of_band = rest.strip()
        for match in _CARD.finditer(listed):
            members = re.sub(r"\[\d+\]\s*", "", match["members"].strip("{}"))
            parts = [part.strip() for part in members.split(",") if part.strip()]
            if network == "Socket":
                name, _, link = parts[0].partition(":") if parts else ("", "", "")
            else:
                name = "+".join(part.rpartition("/")[0] for part in parts)
                link = parts[0].rpartition("/")[2] if parts else ""
            if name:
                number = int(match["number"])
                self.cards[network, number] = Card(network, number, name, link)

    def _made_card(self, number: int, name: str) -> None:
        first = name.partition("+")[0]
        link = next((card.link for card in self.cards.values() if card.name.partition(":")[0] == first), "")
        # A device of one card has been listed with its port.
        if "+" in name or ("IB", number) not in self.cards:
            self.cards["IB", number] = Card("IB", number, name, link)


def _bounded(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(printable(text, _MOST_TEXT) for text in list(texts)[:MOST])
