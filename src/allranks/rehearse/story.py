"""The phases of a rehearsal, one after the other, and what came of each."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from allranks import interrupt
from allranks.config import RunConfig, load_config
from allranks.config.load import resolve_mapping
from allranks.config.strategy import strategy
from allranks.demo.commands import Command
from allranks.disk import refuse_unwritable
from allranks.errors import AllranksError, ConfigError, UsageError
from allranks.exit_codes import DONE
from allranks.launch.describe import strategy_name
from allranks.launch.stop import ended_in_order
from allranks.observe import RunDir, say
from allranks.rehearse.config import NUM_RECORDS, NUM_STEPS, rehearsal_config
from allranks.rehearse.files import write_model
from allranks.rehearse.nodes import (
    inherited,
    is_saved,
    proved_steps,
    rehearsal_environment,
    run_phase,
    train_commands,
)

_MOST_RANKS = 16
"""Each is a process of half a gigabyte, on a machine that a user also works on."""
LEFT_TO_PROVE = (
    "kernels: flash attention, Liger, compiled layers, and numbers in 16 bits",
    "memory: the real model's parameters, optimizer state and activations (`allranks train … --smoke`)",
    "NCCL and the network between the real nodes (`allranks check`, `--smoke`)",
    "quantization of the real weights by a GPU's kernels",
    "speed, and the loss of the real model",
)


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed: `num_nodes` of `nproc_per_node` ranks each, by `words` of train's own. `keep`: the folder that
    all is written to and left in; None for one that is removed at the end."""

    config: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    num_nodes: int = 2
    nproc_per_node: int = 1
    words: Sequence[str] = ()
    keep: Path | None = None
    as_json: bool = False
    ignore_unsupported: bool = False

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.nproc_per_node


@dataclass
class _Phase:
    name: str
    state: str = "failed"
    text: str = ""
    seconds: float = 0.0


def rehearse(asked: Rehearsal) -> int:
    """Rehearse it and tell how it went; returns 0, or the exit code of the part that failed.

    Raises AllranksError for what is wrong before any phase: the command line, the config.
    """
    for name, value in (("--nnodes", asked.num_nodes), ("--nproc-per-node", asked.nproc_per_node)):
        if value < 1:
            raise UsageError(f"{name} {value}: expected 1 or more")
    if asked.world_size > _MOST_RANKS:
        raise UsageError(
            f"{asked.num_nodes} nodes of {asked.nproc_per_node} process(es) are {asked.world_size} ranks, and a "
            f"rehearsal runs up to {_MOST_RANKS} on one machine: what goes wrong with many goes wrong with few"
        )
    cfg = load_config(asked.config, asked.overrides, ignore_unsupported=asked.ignore_unsupported)
    shown = sys.stderr if asked.as_json else sys.stdout
    for line in cfg.remarks:
        say(line, file=sys.stderr)
    inherited(rehearsal_environment(asked.world_size))
    with ended_in_order(), _folder(asked.keep) as folder:
        told = _Told(lambda text: say(text, file=shown))
        code = _Story(asked, cfg, folder, told).play()
        if asked.as_json:
            say(json.dumps({"ok": code == DONE, "exit_code": code, **told.to_message(), "kept": _kept(asked)}))
    return code


def _kept(asked: Rehearsal) -> str | None:
    return str(asked.keep) if asked.keep else None


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        interrupt.means("the rehearsal was not finished; nothing of it is left")
        with tempfile.TemporaryDirectory(prefix="allranks-rehearsal-", ignore_cleanup_errors=True) as name:
            yield Path(name).resolve()
        return
    if keep.exists() and any(keep.iterdir()):
        raise UsageError(f"--keep {keep}: it has files in it; give a folder that is new or empty")
    refuse_unwritable(keep)
    interrupt.means(f"the rehearsal was not finished; what it made is in {keep}")
    yield keep.resolve()


@dataclass
class _Told:
    say: Callable[[str], None]
    phases: list[_Phase] = field(default_factory=list)
    replaced: Sequence[str] = ()

    def to_message(self) -> dict[str, Any]:
        phases = [{**vars(phase), "seconds": round(phase.seconds, 1)} for phase in self.phases]
        return {"phases": phases, "replaced": list(self.replaced), "left_to_prove": list(LEFT_TO_PROVE)}


@dataclass
class _Story:
    asked: Rehearsal
    cfg: RunConfig
    folder: Path
    told: _Told

    def play(self) -> int:
        phases: list[tuple[str, Callable[[], str]]] = [
            ("model", self._model),
            ("config", self._config),
            ("data", self._data),
            ("train", self._train),
            ("resume", self._resume),
            ("export", self._export),
        ]
        head = f"{self.asked.num_nodes} node(s) x {self.asked.nproc_per_node} process(es) on this machine's CPU"
        self.told.say(f"{'rehearsal:':<12}{self.cfg.source}: {head}")
        for name, play in phases:
            phase = _Phase(name)
            self.told.phases.append(phase)
            started = time.monotonic()
            try:
                phase.text = play()
                phase.state = "skipped" if phase.text.startswith("skipped") else "ok"
            except AllranksError as error:
                phase.text = str(error)
                self._line(phase, started)
                self.told.say(f"the rehearsal failed at {name}{self._kept_there()}")
                return error.exit_code
            self._line(phase, started)
        self._end()
        return DONE

    def _line(self, phase: _Phase, started: float) -> None:
        phase.seconds = time.monotonic() - started
        mark = {"ok": "ok", "skipped": "--", "failed": "FAILED"}[phase.state]
        text = phase.text.removeprefix("skipped: ")
        self.told.say(f"  {mark:<8}{phase.name:<9}{phase.seconds:>5.1f} s  {text}")

    def _kept_there(self) -> str:
        return f". All of it is in {self.asked.keep}" if self.asked.keep else "; --keep DIR keeps its files and logs"

    def _end(self) -> None:
        self.told.say("Replaced, because this is a CPU, a small model and a part of the data:")
        for line in self.told.replaced:
            self.told.say(f"  {line}")
        if unwritable := _unwritable(self.cfg):
            self.told.say(f"warning: {unwritable}")
        self.told.say("A run on GPUs still has to prove:")
        for line in LEFT_TO_PROVE:
            self.told.say(f"  {line}")
        if self.asked.keep:
            self.told.say(f"All of it is in {self.asked.keep}")

    def _model(self) -> str:
        sizes = write_model(self.cfg, self.folder / "model")
        self._sizes = sizes
        return f"a random copy of {self.cfg.model.base_model}: {', '.join(sizes) or 'as small as it was'}"

    def _config(self) -> str:
        made = rehearsal_config(self.cfg, self.folder / "model", self.folder, world_size=self.asked.world_size)
        self.told.replaced = made.replaced
        self._small = resolve_mapping(made.flat, self.cfg.source, {})
        self._file = self.folder / "config.yaml"
        text = yaml.safe_dump(dict(made.flat), sort_keys=False, allow_unicode=True)
        self._file.write_text(f"# A rehearsal of {self.cfg.source}\n{text}", encoding="utf-8")
        name = strategy_name(self._small, self.asked.world_size, self.asked.nproc_per_node)
        return f"{name}; {len(made.replaced)} things replaced, which are listed at the end"

    def _data(self) -> str:
        from allranks.data import prepare  # numpy, and perhaps transformers

        prepared = prepare(self._small)
        blocks = f"{len(prepared.train):,} blocks" + (f", {len(prepared.eval):,} to evaluate" if prepared.eval else "")
        tokens = int(prepared.train.token_counts.sum())
        trained = int(prepared.train.target_counts.sum())
        if not trained:
            raise ConfigError(
                f"datasets: not one token is trained in {blocks}: look at it with "
                f"`allranks preprocess {self.cfg.source} --show 3`"
            )
        return f"the first {NUM_RECORDS} records of each: {blocks}, {tokens:,} tokens, {trained:,} of them trained"

    def _train(self) -> str:
        commands = self._commands("train", self.asked.num_nodes, self.asked.nproc_per_node)
        run_phase(commands)
        run = RunDir(self.folder / "run")
        losses = proved_steps(run, self.asked.world_size, range(1, NUM_STEPS + 1))
        if not is_saved(run, NUM_STEPS):
            raise AllranksError(f"no checkpoint of step {NUM_STEPS} was committed")
        return f"{self.asked.num_nodes} node(s) met, {self.asked.world_size} rank(s): {losses}, saved"

    def _resume(self) -> str:
        if self.cfg.checkpoint.save_only_model:
            return "skipped: save_only_model: a run cannot go on from its checkpoints"
        nodes, processes = self._other_number()
        ranks = nodes * processes
        try:
            strategy(self._small, ranks, processes)
        except ConfigError:
            nodes, processes, ranks = self.asked.num_nodes, self.asked.nproc_per_node, self.asked.world_size
        more = ("--max-steps", str(NUM_STEPS + 1), "--auto-resume-from-checkpoints", "true")
        run_phase(self._commands("resume", nodes, processes, more))
        losses = proved_steps(RunDir(self.folder / "run"), ranks, [NUM_STEPS + 1])
        same = "" if ranks != self.asked.world_size else " (the config fixes their number)"
        return f"from step {NUM_STEPS} on {ranks} rank(s){same}: {losses}"

    def _other_number(self) -> tuple[int, int]:
        nodes, processes = self.asked.num_nodes, self.asked.nproc_per_node
        if nodes > 1:
            return nodes - 1, processes
        return (1, processes - 1) if processes > 1 else (2, 1)

    def _export(self) -> str:
        out, run = self.folder / "exported", self.folder / "run"
        words = ("allranks", "export", str(run), "--output", str(out))
        env = rehearsal_environment(1)
        run_phase([Command("export", words, self.folder / "logs" / "export.log", env)])
        files = sorted(path.name for path in out.rglob("*.safetensors"))
        if not files:
            raise AllranksError("the export wrote no safetensors")
        return f"{'adapter' if self.cfg.adapter.adapter else 'model'}: {', '.join(files[:4])}"

    def _commands(self, title: str, nodes: int, processes: int, more: Sequence[str] = ()) -> list[Command]:
        words = (*self.asked.words, *more)
        return train_commands(self._file, self.folder, title, num_nodes=nodes, words=words, nproc_per_node=processes)


def _unwritable(cfg: RunConfig) -> str | None:
    """What the real run will find of its output_dir on this machine: looked at, not touched."""
    path = Path(cfg.checkpoint.output_dir).expanduser().absolute()
    there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"output_dir: {path} cannot be made or written here ({there}); the rehearsal did not need it"
