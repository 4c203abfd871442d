"""Checkpoints where the nodes share no file system: who sees which folder, and bringing a checkpoint to all of them.

Every rank writes its shards where it runs. Resuming needs all of them everywhere, because another topology reads other
parts; so before a load, files are sent to the nodes that lack them, each verified against the marker.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from allranks import durable
from allranks.checkpoint import commit
from allranks.checkpoint.holdings import lost_files
from allranks.cluster.identity import Identity
from allranks.errors import CheckpointError, RefusedError
from allranks.listing import si_bytes

CHUNK_BYTES = 64 * 2**20
"""Sent at a time: large enough for the network, small beside a shard."""

LARGE_BYTES = 10**9
"""Sending more than this takes long enough to say what would avoid it."""


@dataclass(frozen=True)
class Storage:
    """The folder that this rank sees: its `number`, and this rank's place (`part` of `parts`) among those who see it.

    Number 0 is rank 0's. `count` is how many different folders there are; 1 means that all nodes share it.
    """

    number: int
    count: int
    part: int
    parts: int

    @property
    def leads(self) -> bool:
        """Whether this rank acts for its folder."""
        return self.part == 0


ALONE = Storage(0, 1, 0, 1)


def detect_shared(directory: Path, identity: Identity) -> Storage:
    """Find out which ranks see the same `directory`; call it on all ranks.

    Only trying tells: ranks of one node may have a folder each, and those of several nodes any part of their folders in
    common. Rank 0 leaves a file, then do those that do not see it; a folder goes by the first rank whose file is there.
    """
    if identity.alone:
        return ALONE
    directory.mkdir(parents=True, exist_ok=True)
    prefix = f".seen-by-{from_rank_0(uuid.uuid4().hex)}-"
    everyone: list[int | None] = [None]
    marking = [0]
    while None in everyone:
        if identity.rank in marking:
            (directory / f"{prefix}{identity.rank}").touch()
        dist.barrier()
        mine = next((rank for rank in marking if (directory / f"{prefix}{rank}").exists()), None)
        everyone = from_all(mine)
        marking += [rank for rank, seen in enumerate(everyone) if seen is None]
    if identity.rank in marking:
        (directory / f"{prefix}{identity.rank}").unlink()
    folders = list(dict.fromkeys(everyone))  # in the order of ranks: rank 0's is the first
    together = [rank for rank, folder in enumerate(everyone) if folder == mine]
    return Storage(folders.index(mine), len(folders), together.index(identity.rank), len(together))


def latest_valid(directory: Path, storage: Storage, say: Callable[[str], None]) -> Path | None:
    """The newest committed checkpoint, whole on every node; None where no node has one. Call it on all ranks.

    Committed is what any node has the marker of, and its files may lie on any of them. One of which bytes are damaged
    is passed over, and said, with the reason. Ranks share the reading of files between them.
    Raises RefusedError if files of the newest are on no node's disk, as after the loss of one: to begin below it would
    end in replacing steps that are perhaps safe where nobody looked. Raises CheckpointError if none can be used.
    """
    committed = committed_steps(directory, storage)
    mine = {path.name for path in commit.incomplete_checkpoints(directory)} if storage.leads else set()
    for name in sorted(set().union(*from_all(mine)) - set(committed), reverse=True):
        say(f"{name} has no {commit.MARKER} marker (its save was cut off): not used")
    for name in committed:
        lack = replicate(directory / name, storage, say)
        if not lack:
            return directory / name
        if lack.absent:
            raise RefusedError(lost_files(name, lack.absent, lack.num_files))
        for problem in lack.problems:
            say(problem)
        say(f"{name} is damaged: not used{', taking the one before it' if name != committed[-1] else ''}")
    if committed:
        raise CheckpointError(
            f"none of the {len(committed)} checkpoint(s) in {directory} can be used; why is said above. To begin at "
            "step 0, move the folder away or choose another --output-dir"
        )
    return None


def committed_steps(directory: Path, storage: Storage) -> list[str]:
    """Names of the checkpoints that any node has committed in `directory`, newest first; call it on all ranks."""
    mine = [path.name for path in commit.complete_checkpoints(directory)] if storage.leads else []
    names = {name for of_rank in from_all(mine) for name in of_rank}
    return sorted(names, key=lambda name: commit.step_of(Path(name)), reverse=True)


@dataclass(frozen=True)
class Lack:
    """What keeps a checkpoint from being whole: `problems` to tell, and the files `absent` from every node's disk."""

    problems: Sequence[str] = ()
    absent: Sequence[str] = ()
    num_files: int = 0

    def __bool__(self) -> bool:
        return bool(self.problems)


def replicate(checkpoint: Path, storage: Storage, say: Callable[[str], None] = lambda text: None) -> Lack:
    """Make `checkpoint` whole on every node, from whichever nodes have its parts; call it on all ranks.

    What has to be sent is said. Returns what is wrong with it, the same on every rank and empty (false) if nothing is:
    files of which nobody has a sound copy.
    """
    found = [one for one in from_all(_read_marker(checkpoint) if storage.leads else None) if one is not None]
    marker = next((marker for marker, _ in found if marker is not None), None)
    if marker is None:
        return Lack([problem for _, problem in found][:1])
    if any(other is not None and other["files"] != marker["files"] for other, _ in found):
        return Lack([f"{checkpoint}: the nodes have different checkpoints of this name: they come from separate runs"])
    files = marker["files"]
    sound, problems = commit.verify_files(checkpoint, files, part=storage.part, parts=storage.parts)
    absent = [name for name in problems if not (checkpoint / name).exists()]
    reports = from_all((storage.number, sound, problems, absent))
    holders: dict[str, dict[int, int]] = {name: {} for name in files}  # file -> {folder: a rank}
    for rank, (number, names, _, _) in enumerate(reports):
        for name in names:
            holders[name].setdefault(number, rank)
    lost = {name for name, of in holders.items() if not of}
    if lost:
        present = {name for _, _, texts, away in reports for name in texts if name not in away}
        # Of a file that lies damaged somewhere, that it is missing elsewhere says nothing.
        said = {
            text
            for _, _, texts, away in reports
            for name, text in texts.items()
            if name in lost and (name not in present or name not in away)
        }
        return Lack(sorted(said), sorted(lost - present), len(files))
    sizes = [files[name]["bytes"] for name, of in holders.items() if len(of) < storage.count]
    if sizes:
        say(_announce(checkpoint.name, len(sizes), sum(sizes)))
    for name, of in holders.items():
        if len(of) < storage.count:
            lacking = storage.leads and storage.number not in of
            _send(checkpoint, name, files[name]["bytes"], min(of.values()), receives=lacking)
    if storage.leads and not (checkpoint / commit.MARKER).is_file():
        # What was here already may be of a save that was cut off: nobody has brought that to the disk.
        brought = {name for name, of in holders.items() if storage.number not in of}
        durable.sync_files(checkpoint, set(files) - brought)
        commit.write_marker(checkpoint, marker)
    _barrier()
    return Lack()


def _announce(name: str, num_files: int, num_bytes: int) -> str:
    text = f"{name}: sending {num_files} file{'s' * (num_files > 1)} ({si_bytes(num_bytes, 2)}) to nodes that lack them"
    if num_bytes > LARGE_BYTES:
        text += "; with output_dir on a file system that all nodes share, nothing would have to be sent"
    return text


def _read_marker(checkpoint: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return commit.read_marker(checkpoint), ""
    except CheckpointError as error:
        return None, str(error)


def _send(checkpoint: Path, name: str, size: int, source: int, *, receives: bool) -> None:
    """Broadcast a file from rank `source`; ranks that `receive` write it. All ranks take part in the broadcast."""
    with contextlib.ExitStack() as files:
        reading = files.enter_context((checkpoint / name).open("rb")) if dist.get_rank() == source else None
        writing = files.enter_context(durable.replacing(commit.way_for(checkpoint, name))) if receives else None
        for start in range(0, size, CHUNK_BYTES):
            chunk = torch.empty(min(CHUNK_BYTES, size - start), dtype=torch.uint8)
            if reading is not None:
                reading.readinto(chunk.numpy().data)
            dist.broadcast(chunk, src=source)
            if writing is not None:
                writing.write(chunk.numpy().data)


def broadcast_marker(checkpoint: Path, storage: Storage, group: dist.ProcessGroup | None) -> None:
    """After a commit, give the other folders the marker too, so that they know which of their shards to keep."""
    if storage.count == 1:
        return
    marker: list[Mapping[str, Any] | None] = [commit.read_marker(checkpoint) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(marker, src=0, group=group)
    if storage.leads and storage.number != 0 and marker[0] is not None:
        commit.write_marker(checkpoint, marker[0])


def from_rank_0(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """Every rank's `value`, by rank; call it on all ranks."""
    if not dist.is_initialized():
        return [value]
    box = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
