"""Saving and restoring one run's state through torch.distributed.checkpoint (DCP), sharded, in front of the training or
behind it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from allranks import durable
from allranks.checkpoint import commit
from allranks.checkpoint.dcp.reader import reader
from allranks.checkpoint.state import STATE_FILE, RunState, read_state
from allranks.errors import AllranksError, CheckpointError
from allranks.model.complete import adapter_problems
from allranks.train.committing_writer import CommittingWriter
from allranks.train.finalizers import quiet_streams
from allranks.train.home import Home
from allranks.train.save_failure import not_saved, of_ranks, reasons, save_told
from allranks.train.saved_size import saved_bytes
from allranks.train.storage import Storage, broadcast_marker
from allranks.train.strategies import State
from allranks.train.strategies.flat import LoadPlanner, SavePlanner

# DCP says so on every save and load of a single process, where it is no news.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
quiet_streams()

HF_FOLDER = "hf"


class Checkpointer:
    """Saves and restores one run's state: its model and optimizer. One save is under way at a time.

    `group` is a gloo group of its own for saves behind the training: collectives of a save and of the training must
    not interleave on one group.
    """

    def __init__(
        self,
        directory: Path,
        trained: State,
        *,
        group: dist.ProcessGroup | None,
        storage: Storage,
        asynchronous: bool,
        keep: int | None,
        only_model: bool = False,
        write_extras: Callable[[Path], None] = lambda folder: None,
        warn: Callable[[str], None] = lambda text: None,
        home: Home | None = None,
    ) -> None:
        self.directory = directory
        self.home = home
        self.trained = trained
        self.group = group
        self.storage = storage
        self.distributed = group is not None
        self.rank = dist.get_rank() if self.distributed else 0
        self._world_size = dist.get_world_size() if self.distributed else 1
        self.asynchronous = asynchronous
        self.keep = keep
        self.only_model = only_model
        self.write_extras = write_extras
        self.warn = warn
        self.protected: set[Path] = set()
        self._told: set[Path] = set()
        self.newest: Path | None = None
        self._pending: tuple[Path, Future[Any]] | None = None

    def save(self, step: int, state: RunState) -> Path:
        """Start saving step `step`; returns at once when asynchronous. `state` becomes state.json.

        Call it on all ranks. A save still under way is waited for first.
        """
        self.wait()
        checkpoint = commit.checkpoint_path(self.directory, step)
        contents = self.trained.contents(only_model=self.only_model)
        refuse_incomplete(contents, f"step {step} is not saved", state)
        needed = self._begin(checkpoint, state, num_bytes=saved_bytes(contents, self._world_size))
        self.newest = checkpoint
        how: dict[str, Any] = {
            "storage_writer": CommittingWriter(
                checkpoint, {"step": step}, elsewhere=self.storage.number != 0, needed_bytes=needed
            ),
            "planner": SavePlanner(),
            "process_group": self.group,
            "no_dist": not self.distributed,
        }
        if self.asynchronous:
            response = dcp.async_save(contents, **how)
            assert isinstance(response, Future)
            self._pending = (checkpoint, response)
        else:
            try:
                dcp.save(contents, **how)
            except CheckpointException as error:
                raise self._not_saved(checkpoint, error) from error
            self._committed(checkpoint)
        return checkpoint

    def _begin(self, checkpoint: Path, state: RunState, *, num_bytes: float) -> int:
        """Make the folder, with what rank 0 writes by itself; returns the bytes that all ranks put on this disk.

        What one rank's disk refuses is raised on all of them, so that none waits for it.
        """
        refused: AllranksError | None = None
        try:
            with save_told(checkpoint, int(num_bytes * self._world_size)):
                if self.home is not None:
                    self.home.refuse_another()
                if self.storage.leads:
                    self._make_room(checkpoint)
                if self.rank == 0:
                    (checkpoint / HF_FOLDER).mkdir(parents=True)
                    (checkpoint / STATE_FILE).write_text(state.to_json())
                    self.write_extras(checkpoint / HF_FOLDER)
        except AllranksError as error:
            refused = error
        except Exception as error:  # the others wait for this rank: whatever it is, they must hear of it
            refused = CheckpointError(f"{checkpoint} is not saved: {type(error).__name__}: {error}")
        everyone = self._from_all((refused, self.storage.number, num_bytes))
        if failures := {rank: told for rank, (told, _, _) in enumerate(everyone) if told}:
            self._remove_partial(checkpoint)
            raise of_ranks(failures)
        return int(sum(size for _, number, size in everyone if number == self.storage.number))

    def _from_all(self, mine: Any) -> list[Any]:
        if not self.distributed:
            return [mine]
        everyone = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def _not_saved(self, checkpoint: Path, error: BaseException) -> AllranksError:
        """The error of a save that failed; what it left is removed, for nobody can use it and it takes the room."""
        if isinstance(error, CheckpointException):
            # All ranks have reported theirs: none writes there any more.
            self._remove_partial(checkpoint)
        return not_saved(checkpoint, error)

    def _remove_partial(self, checkpoint: Path) -> None:
        if self.storage.leads and not (checkpoint / commit.MARKER).exists():
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _make_room(self, checkpoint: Path) -> None:
        durable.make_folders(self.directory)
        if os.path.lexists(checkpoint):  # an earlier save of this step that was cut off, or is being replaced
            try:
                commit.remove(checkpoint)
            except OSError as error:
                raise CheckpointError(
                    f"{checkpoint} is in the way of a save and cannot be removed: {_why(error)}. Move it away, or "
                    "start with another --output-dir"
                ) from None
        if self.storage.number:
            durable.make_folders(checkpoint)  # before rank 0, on another disk, says that it is committed

    @property
    def progress(self) -> tuple[bool, bool]:
        """Whether this rank's part of the save under way is done, and whether it failed here; never blocks.

        When all ranks' parts are done, or one has failed, all of them `wait`: at the same step, so that none is left
        alone in a collective.
        """
        if self._pending is None or not self._pending[1].done():
            return False, False
        return True, self._pending[1].exception() is not None

    def wait(self) -> Path | None:
        """Wait for a save under way. Raises CheckpointError if it failed."""
        if self._pending is None:
            return None
        checkpoint, future = self._pending
        self._pending = None
        try:
            future.result()
        except (Exception, CheckpointException) as error:
            raise self._not_saved(checkpoint, error) from error
        self._committed(checkpoint)
        return checkpoint

    def _committed(self, checkpoint: Path) -> None:
        broadcast_marker(checkpoint, self.storage, self.group)
        if not self.storage.leads:
            return
        # The new checkpoint is safe: tidying up is not worth the run (NFS keeps files that somebody reads).
        try:
            commit.sweep(self.directory, commit.step_of(checkpoint), self._stays)
            if self.keep:
                commit.prune(self.directory, self.keep, {*self.protected, checkpoint}, self._stays)
        except OSError as error:
            self._stays(self.directory, error)

    def _stays(self, path: Path, error: OSError) -> None:
        """Say once of a folder that it could not be removed."""
        if path not in self._told:
            self._told.add(path)
            self.warn(
                f"{path} cannot be removed: {_why(error)}. It is left, and save_total_limit goes on with the others; "
                "remove it by hand if you need the room"
            )

    def load(self, checkpoint: Path) -> RunState:
        """Restore model and optimizer from `checkpoint`, resharded to this topology; returns its state."""
        state = read_state(checkpoint)
        if state.only_model:
            raise CheckpointError(
                f"{checkpoint} holds no optimizer state (it was saved with save_only_model: true), so training cannot "
                "go on from it as if nothing had happened; start a new run with base_model set to its export"
            )
        contents = self.trained.contents(only_model=False)
        try:
            dcp.load(contents, storage_reader=reader(checkpoint), planner=LoadPlanner(), no_dist=not self.distributed)
        except CheckpointException as error:
            raise CheckpointError(
                f"{checkpoint} does not fit this model: {reasons(error)} Was base_model or an adapter key changed?"
            ) from error
        refuse_incomplete(contents, f"{checkpoint} cannot be used", state)
        self.trained.restore(contents)
        return state


def refuse_incomplete(contents: dict[str, Any], what: str, state: RunState) -> None:
    """Raise CheckpointError where this rank's part of an adapter shows that rows are missing."""
    random_start = not state.config.get("lora_model_dir")
    if problems := adapter_problems(contents["model"], random_start=random_start):
        raise CheckpointError(f"{what}: its adapter is not whole: {'; '.join(problems[:4])}; use an earlier checkpoint")


def _why(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text} ({os.fsdecode(error.filename)})" if error.filename else text
