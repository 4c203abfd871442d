"""A config timed on several numbers of nodes, one after the other, and what is told of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from allranks import durable, interrupt
from allranks.config import RunConfig, load_config
from allranks.disk import disk_told, refuse_unwritable
from allranks.errors import ConfigError, UsageError
from allranks.launch.all_nodes.start import start_all_nodes
from allranks.launch.describe import speaks_for_all, strategy_name
from allranks.launch.place import where_to_start
from allranks.launch.plan.machines import measured_link
from allranks.launch.run_token import TOKEN
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.from_environment import tell
from allranks.launch.spec.options import Launch, LaunchOptions
from allranks.launch.spec.where import NodeOptions
from allranks.launch.stop import ended_in_order
from allranks.observe import RunDir, say
from allranks.observe.folding import terminal_width
from allranks.plan.hardware import Link, find_link
from allranks.scaling.efficiency import scaled, work_per_forward
from allranks.scaling.from_here import run_from_here
from allranks.scaling.here import configs_of, remove, run_here
from allranks.scaling.planned import planned
from allranks.scaling.report import Outcome, Scaling, as_csv, as_text
from allranks.scaling.sizes import batch_keys, refuse_more_than

WARM_UP_STEPS = 5
"""In the first three a compiler, the allocator and DDP arrange themselves; of the third the traffic is counted."""
_NOT_RAY = "allranks bench-scaling chooses the nodes of each size itself, which Ray does not let it: take torchrun"


@dataclass(frozen=True)
class ScalingBench:
    """What was asked for. `sizes` are numbers of nodes, `steps` those that are timed of each, `link` names what joins
    the nodes (plan/hardware.toml). `words` are the options for `allranks train` as they were given, `node_words` those
    about nodes, `argv` the whole command line."""

    config: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[int, ...] = (1,)
    steps: int = 30
    keep_batch: bool = False
    keep: bool = False
    csv: Path | None = None
    as_json: bool = False
    ignore_unsupported: bool = False
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    nodes: NodeOptions = field(default_factory=NodeOptions)
    link: str | None = None
    words: Sequence[str] = ()
    node_words: Sequence[str] = ()
    argv: Sequence[str] = ()


def bench_scaling(asked: ScalingBench) -> int:
    """Time all sizes and tell how they scale; returns 0, or the exit code of a size that failed.

    Raises AllranksError for what is wrong before any size is started: the command line, the config, a batch that
    cannot be shared out.
    """
    if asked.steps < 1:
        raise UsageError(f"--steps {asked.steps}: expected 1 or more")
    if asked.launch.launcher == "ray":
        raise UsageError(_NOT_RAY)
    named = find_link(asked.link) if asked.link is not None else None
    everywhere, launch, notes = where_to_start(asked.nodes, asked.launch, asked.argv, os.environ.get(TOKEN, ""))
    cfg = load_config(asked.config, asked.overrides, ignore_unsupported=asked.ignore_unsupported)
    if cfg.launch.use_ray:
        raise UsageError(_NOT_RAY)
    tell(notes)
    between = named or measured_link(Path(cfg.checkpoint.output_dir).expanduser())
    num_steps = WARM_UP_STEPS + asked.steps
    if everywhere is None:
        assert launch is not None
        if launch.is_elastic or launch.min_nodes != launch.max_nodes or launch.node_rank is None:
            raise UsageError("each size has a fixed number of nodes: give --nnodes N --node-rank R --master-addr HOST")
        refuse_more_than(
            launch.max_nodes,
            asked.sizes,
            named="without --hosts or a job there is" if launch.max_nodes == 1 else "--nnodes says",
        )
        configs = configs_of(cfg, asked.sizes, num_steps=num_steps, keep_batch=asked.keep_batch)
        told = _Told(asked, cfg, configs, between, not speaks_for_all(launch), measures=launch.node_rank == 0)
        if told.measures:
            _refuse_csv(asked.csv)
        return _here(asked, told, launch)
    refuse_more_than(len(everywhere.hosts), asked.sizes, named="there are")
    _refuse_csv(asked.csv)
    # A table is written here, which only who reads what the nodes say can do.
    if asked.as_json and asked.csv is None and asked.sizes == (len(everywhere.hosts),):
        interrupt.means("this number of nodes was not timed")
        return start_all_nodes(everywhere, os.environ.get(TOKEN, ""))
    configs = configs_of(cfg, asked.sizes, num_steps=num_steps, keep_batch=asked.keep_batch)
    return _from_here(asked, _Told(asked, cfg, configs, between), everywhere)


def _refuse_csv(file: Path | None) -> None:
    """Before anything is timed: a table that cannot be written is known after all sizes."""
    if file is None:
        return
    if not file.name or file.is_dir():
        raise UsageError(f"--csv {file}: is a folder; name a file in it, such as {file / 'scaling.csv'}")
    refuse_unwritable(file.parent, "--csv", "--csv")


def _here(asked: ScalingBench, told: _Told, launch: Launch) -> int:
    try:
        with ended_in_order():
            runs = run_here(launch, told.configs, asked.words, warm_up=WARM_UP_STEPS, begins=told.begins)
            return told.all_of(runs)
    finally:
        if not asked.keep:
            remove(told.configs, launch.node_rank or 0)
        elif speaks_for_all(launch):
            told.say(f"all of it is in {RunDir(told.cfg.checkpoint.output_dir).scaling}")


def _from_here(asked: ScalingBench, told: _Told, everywhere: Everywhere) -> int:
    words = {}
    for nodes in asked.sizes:
        batch = batch_keys(told.cfg, nodes, asked.sizes[-1], keep_batch=asked.keep_batch)
        keys = {**asked.overrides, **{key: str(value) for key, value in batch.items()}}
        own = ["--nodes", f"{nodes}", "--steps", f"{asked.steps}", "--master-port", f"{everywhere.port}"]
        own += [*(["--keep"] if asked.keep else []), *(["--ignore-unsupported"] if asked.ignore_unsupported else [])]
        own += [f"--{key.replace('_', '-')}={value}" for key, value in keys.items()]
        words[nodes] = [str(asked.config), *own, *asked.words, *asked.node_words]
    with ended_in_order(), tempfile.TemporaryDirectory(prefix="allranks-bench-scaling-") as name:
        code = told.all_of(run_from_here(everywhere, asked.sizes, words, Path(name), begins=told.begins))
    if asked.keep:
        told.say(f"all of it is in {RunDir(told.cfg.checkpoint.output_dir).scaling} on the nodes")
    return code


@dataclass
class _Told:
    """Tells of the sizes as they come, and of all at the end, where this process `measures`: on node 0, or where all
    nodes are started."""

    asked: ScalingBench
    cfg: RunConfig
    configs: Mapping[int, RunConfig]
    between: Link | None
    is_silent: bool = False
    measures: bool = True

    def say(self, text: str) -> None:
        if not self.is_silent:
            say(text, file=sys.stderr if self.asked.as_json else sys.stdout)

    def begins(self, nodes: int, log: Path) -> None:
        self.say(f"  {_nodes(nodes)}: {WARM_UP_STEPS} + {self.asked.steps} steps; what it prints is in {log}")

    def all_of(self, runs: Iterator[Outcome]) -> int:
        interrupt.means("not all numbers of nodes were timed; what was started is ended and removed")
        numbers = ", ".join(map(str, self.asked.sizes))
        batch = "the global batch is kept" if self.asked.keep_batch else "each rank keeps its batch"
        self.say(f"bench-scaling: {self.cfg.source} on {numbers} node{'s' * (self.asked.sizes != (1,))}; {batch}")
        outcomes: list[Outcome] = []
        try:
            with contextlib.closing(runs):  # type: ignore[type-var]
                for outcome in runs:
                    outcomes.append(outcome)
                    self.say(f"    {_how(outcome)}")
        except (KeyboardInterrupt, SystemExit):
            if any(one.measured for one in outcomes) and not self.asked.as_json:
                self.say(as_text(self._scaling(outcomes), width=_width()))
            raise
        return self._end(outcomes)

    def _end(self, outcomes: Sequence[Outcome]) -> int:
        scaling = self._scaling(outcomes)
        if not self.measures:
            return scaling.exit_code
        if self.asked.as_json:
            say(json.dumps(scaling.to_message()))
        else:
            self.say(as_text(scaling, width=_width(), ascii_only=_is_ascii()))
        if self.asked.csv is not None:
            with disk_told("the table cannot be written", self.asked.csv):
                durable.write(self.asked.csv, as_csv(scaling))
        return scaling.exit_code

    def _scaling(self, outcomes: Sequence[Outcome]) -> Scaling:
        cfg, of_all = self.cfg, sorted(outcomes, key=lambda one: one.nodes)
        sizes = [one.measured for one in of_all if one.measured is not None]
        factor = work_per_forward(
            on_gpu=any(one.on_gpu for one in sizes),
            trains_all=not cfg.adapter.adapter,
            recomputes=cfg.parallel.checkpoints_activations,
        )
        seconds, plan = planned(self.configs, sizes, self.between)
        name = ""
        if sizes:
            with contextlib.suppress(ConfigError):
                name = strategy_name(cfg, sizes[-1].ranks, sizes[-1].ranks // sizes[-1].nodes)
        return Scaling(
            config=cfg.source,
            strategy=name,
            keep_batch=self.asked.keep_batch,
            warm_up=WARM_UP_STEPS,
            outcomes=of_all,
            scaled=scaled(sizes, work_per_forward=factor, planned_seconds=seconds),
            plan=plan,
        )


def _how(outcome: Outcome) -> str:
    one = outcome.measured
    if one is None:
        return f"failed: {outcome.error.splitlines()[0]}" if outcome.error else "this node's part is done"
    return f"{one.tokens_per_second:,.0f} tokens/s, {one.seconds:.3g} s a step ({one.fastest:.3g} to {one.slowest:.3g})"


def _nodes(number: int) -> str:
    return f"{number} node{'s' if number > 1 else ''}"


def _width() -> int:
    return terminal_width(sys.stdout) or 80


def _is_ascii() -> bool:
    return not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
