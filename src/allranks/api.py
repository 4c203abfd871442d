"""The public Python API (docs/python.md): train, read a config, read what a run has recorded.

`import allranks` hands these names out; neither that nor this module imports torch.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.cluster.identity import identify, is_numbered
from allranks.config import RunConfig
from allranks.config import load_config as read_config
from allranks.config.config_source import flag_name
from allranks.doctor import causes
from allranks.errors import AllranksError, RefusedError, UsageError
from allranks.exit_codes import DONE, INTERRUPTED, PREEMPTED, REFUSED, USAGE
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.where import NodeOptions
from allranks.launch.start import start
from allranks.launch.stop import STOPPING
from allranks.observe import RunDir
from allranks.observe import read_events as events_of_file
from allranks.observe.events import ErrorEvent, Event

Config = str | os.PathLike[str] | Mapping[str, Any] | RunConfig
"""A config: the path of a YAML file, its keys as a mapping, or one that `load_config` returned."""

_LAST_EVENTS_BYTES = 2**20
"""Of the file of a rank that failed: what ends it stands there, and a long run's has hundreds of megabytes."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended that did not fail. `exit_code` is that of `allranks train`: 0 done, 75 preempted."""

    exit_code: int
    run_dir: Path

    @property
    def is_preempted(self) -> bool:
        """Whether a signal stopped it: it has saved a checkpoint, and is to be started again."""
        return self.exit_code == PREEMPTED


class TrainingError(AllranksError):
    """A training that began and failed. `first` is the event of the rank that failed first, where one could tell."""

    def __init__(self, message: str, exit_code: int, run_dir: Path, first: ErrorEvent | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.run_dir = run_dir
        self.first = first


def load_config(
    config: Config, overrides: Mapping[str, object] | None = None, *, ignore_unsupported: bool = False
) -> RunConfig:
    """Read a config, apply overrides, check everything, and return it resolved and frozen.

    `overrides` maps dotted keys to values: `{"max_steps": 20, "fsdp_config.offload_params": True}`; None unsets a key.
    A text is read as on the command line: `"1e-4"` is a number where the key takes one. With `ignore_unsupported`
    Axolotl's keys that allranks does not support are left out, each with a line in `warnings`. Raises ConfigError with
    one line for each problem.
    """
    return read_config(config, _as_texts(overrides), ignore_unsupported=ignore_unsupported)


def train(
    config: Config,
    overrides: Mapping[str, object] | None = None,
    *,
    nproc_per_node: int | None = None,
    hosts: str | None = None,
    nnodes: int | None = None,
    node_rank: int | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    launcher: str | None = None,
    max_restarts: int = 0,
    ignore_unsupported: bool = False,
) -> TrainResult:
    """Train what `config` says, and return when it is done or was preempted.

    In a process that a launcher numbered (torchrun, accelerate, deepspeed, srun, mpirun) this is that rank, and
    trains here, as `python -m allranks.train CONFIG`. Anywhere else it starts the ranks as child processes, as
    `allranks train CONFIG` does with the options of the same names: one per GPU, or on all nodes of `hosts` or of the
    job of Slurm or PBS around it.

    Signals are answered while it runs, so it is for the main thread; handlers and environment are given back.

    Raises what the command would print and end with: ConfigError, DataError and other UsageErrors (2), RefusedError
    (3), TrainingError where a run that began has failed, KeyboardInterrupt after Ctrl-C (130). Every AllranksError has
    an `exit_code`.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("allranks.train answers signals while it runs: call it from the main thread of the process")
    place = LaunchOptions(
        nnodes=None if nnodes is None else str(nnodes),
        node_rank=node_rank,
        nproc_per_node=nproc_per_node,
        master_addr=master_addr,
        master_port=master_port,
        launcher=launcher,
        max_restarts=max_restarts,
    )
    is_rank = is_numbered(os.environ)
    if is_rank and (place != LaunchOptions() or hosts is not None):
        _refuse_place_of_a_rank()
    texts = _as_texts(overrides)
    cfg = read_config(config, texts, ignore_unsupported=ignore_unsupported)
    run = RunDir(cfg.checkpoint.output_dir)
    before = {path: path.stat().st_size for path in run.all_events()}
    with _given_back():
        if is_rank:
            code = _train_this_rank(cfg)
        else:
            words = _command(config, texts, place, hosts, ignore_unsupported)
            code = start(cfg, {}, place, NodeOptions(hosts=hosts), argv=words, in_this_process=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code in (DONE, PREEMPTED):
        return TrainResult(code, run.path)
    raise _failure(code, run, before)


def read_events(run: str | os.PathLike[str], *, rank: int | None = None) -> Iterator[Event]:
    """The events of a run directory in the order of their times, of all ranks or of one; or those of one file.

    They are read as they are asked for. Lines torn by a kill are passed over. Raises UsageError where there are none.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return events_of_file(path)
    there = RunDir(path).all_events()
    wanted = there if rank is None else [file for file in there if file == RunDir(path).events(rank)]
    if not wanted:
        of = f"no events of rank {rank} among those of {len(there)} rank(s)" if there else "no events of a run"
        raise UsageError(f"{path}: {of}: expected a run's output_dir, with events/rank-00000.jsonl, or such a file")
    return heapq.merge(*map(events_of_file, wanted), key=lambda event: event.t)


def _as_texts(overrides: Mapping[str, object] | None) -> dict[str, str]:
    """As they would be written on the command line."""

    def text(value: object) -> str:
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
        return json.dumps(value, ensure_ascii=False, default=str)

    return {key.replace("-", "_"): text(value) for key, value in (overrides or {}).items()}


def _command(
    config: Config, texts: Mapping[str, str], place: LaunchOptions, hosts: str | None, ignore_unsupported: bool
) -> list[str]:
    """The command line that does the same, for the record and for other nodes; of keys that lie in no file, none."""
    if not isinstance(config, str | os.PathLike):
        return []
    names = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "launcher")
    options = {name: getattr(place, name) for name in names} | {"max_restarts": place.max_restarts or None}
    given = {name: value for name, value in {**options, "hosts": hosts}.items() if value is not None}
    words = [f"{flag_name(name)}={value}" for name, value in {**given, **texts}.items()]
    return ["train", os.fspath(config), *words, *(["--ignore-unsupported"] if ignore_unsupported else [])]


def _refuse_place_of_a_rank() -> None:
    identity = identify(os.environ)
    raise UsageError(
        f"this process is rank {identity.rank} of {identity.world_size} already (from {identity.source}): how many "
        "there are, and where, is for the launcher that started it; leave these options of allranks.train out"
    )


def _train_this_rank(cfg: RunConfig) -> int:
    from allranks.train.entry import begin_rank

    cfg, identity = begin_rank(lambda also: read_config(cfg, also))
    import torch.distributed as dist

    from allranks.train.hold import run_held
    from allranks.train.main import main_rank
    from allranks.train.world import destroy_group

    if dist.is_initialized():
        raise UsageError("this process has a process group already: call allranks.train before, or destroy it first")
    with run_held(cfg.checkpoint.output_dir, identity):
        code = main_rank(cfg, identity)
        if code in (DONE, PREEMPTED):
            destroy_group()
    return code


def _failure(code: int, run: RunDir, before: Mapping[Path, int]) -> AllranksError:
    """What to raise; `before`: how much of each file of events was there when it began."""
    errors = []
    for path in run.all_events():
        new_bytes = max(0, path.stat().st_size - before.get(path, 0))
        last = events_of_file(path, last_bytes=min(new_bytes, _LAST_EVENTS_BYTES))
        errors += [event for event in last if isinstance(event, ErrorEvent)]
    errors.sort(key=lambda event: event.t)
    first = next((event for event in errors if event.code != causes.PEER_GONE), next(iter(errors), None))
    what = f"the run failed with exit code {code}; what it printed and {run.path / 'logs'} say more"
    if first is not None:
        what = f"rank {first.rank} on {first.host}: {first.message}"
    if code in (USAGE, REFUSED):
        return (UsageError if code == USAGE else RefusedError)(what)
    return TrainingError(what, code, run.path, first)


@contextlib.contextmanager
def _given_back() -> Iterator[None]:
    """Leave environment and signals as they were: this process goes on, as that of a command does not."""
    environment, handlers = dict(os.environ), {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
