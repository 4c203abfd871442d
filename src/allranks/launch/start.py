"""Train on this machine, as the only node or as one of several that were each started by hand."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allranks import durable, interrupt
from allranks.checkpoint.commit import complete_checkpoints, refuse_earlier_run
from allranks.checkpoint.holdings import Held, held
from allranks.cluster.restarted import RESTARTS
from allranks.cluster.smoke import SMOKE
from allranks.config import RunConfig, load_config
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.training_end import stopped_training, training_end
from allranks.doctor.verdict import Verdict
from allranks.doctor.with_rules import with_rules
from allranks.errors import RefusedError, UsageError
from allranks.launch.all_nodes.start import start_all_nodes
from allranks.launch.attempt import Checked, told_attempt
from allranks.launch.certificate import Starts, compare, nodes_of, parts_now
from allranks.launch.describe import describe, speaks_for_all
from allranks.launch.joining import refusals_told
from allranks.launch.must_match import refuse_unreadable, what_must_be_equal
from allranks.launch.node.environment import network_variables
from allranks.launch.node.live_alone import watched_alone
from allranks.launch.node.live_table import AfterHang
from allranks.launch.node.local import RunInputs, prepare_this_process
from allranks.launch.node.start_anew import start_anew
from allranks.launch.node.starters.memory import allocator_variables, gives_huge_pages_on_request
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.launch.place import refuse_nested_launch, where_to_start
from allranks.launch.preflight.alone import refuse_too_large
from allranks.launch.preflight.answering import refuse_what_does_not_answer
from allranks.launch.preflight.asked import is_skipped, paths_of, policy_of, probe_request, sizes_of, wanted_of
from allranks.launch.preflight.refusals import refuse_stored_weights, refuse_without_deepspeed
from allranks.launch.preflight.together import Preflight
from allranks.launch.ray_train import start_ray, with_launcher
from allranks.launch.restart import refuse_restart, told_restarts
from allranks.launch.restarts import Restarts
from allranks.launch.run_token import take_token
from allranks.launch.smoke import Smoke, clear_earlier_smoke, smoke_config, smoke_variables
from allranks.launch.spec.accelerate_settings import LAYER_CLASS, layer_class, refuse_contradictions
from allranks.launch.spec.from_environment import tell
from allranks.launch.spec.options import Launch, LaunchOptions
from allranks.launch.spec.program import Program, engine
from allranks.launch.spec.where import NodeOptions
from allranks.launch.stop import NO_RANK_LEFT
from allranks.model.files import config_json, stored_config
from allranks.model.known_names import refuse_unknown_overrides, refuse_wrong_layer_class
from allranks.model.needs_gpu import refuse_without_gpu
from allranks.observe import RunDir, libraries_aside, say
from allranks.observe.trackers import refuse_missing_packages
from allranks.plan.adapter_names import refuse_unknown_adapter


def start(
    config: str | Path | RunConfig,
    overrides: Mapping[str, str],
    options: LaunchOptions,
    nodes: NodeOptions | None = None,
    *,
    argv: Sequence[str] = (),
    ignore_unsupported: bool = False,
    fingerprint: str | None = None,
    in_this_process: bool = True,
    smoke: bool = False,
) -> int:
    """Train what `config` says; returns the exit code (0 done, 1 failed, 2 usage, 75 preempted, 130 interrupted).

    With one process the engine runs in this process, unless `in_this_process` is false; else a launcher is started as a
    child. `argv` is what other nodes are started with. `fingerprint` is what the prepared data must have, if that is
    known. `smoke`: only two steps, which are judged (3 for no-go). Raises AllranksError for what can be refused before
    any rank starts.
    """
    os.environ.pop(SMOKE, None)  # of another start
    nodes, overrides = nodes or NodeOptions(), with_launcher(overrides, options.launcher)
    token = take_token()
    everywhere, launch, notes = (
        where_to_start(nodes, options, argv, token) if options.launcher != "ray" else (None, None, [])
    )
    with refusals_told(launch):
        # What is wrong here is wrong on every node: better told once, before any of them is asked.
        cfg = load_config(config, overrides, ignore_unsupported=ignore_unsupported)
        if cfg.launch.use_ray:  # its cluster says which nodes there are
            interrupt.means(NO_RANK_LEFT)
            return start_ray(cfg, options, nodes, argv=argv, smoke=Smoke(cfg) if smoke else None)
        # The allocator is set when a process starts: worth a second for huge pages, and for nothing else with one rank.
        # What a pipe has said it does not say again.
        again = in_this_process and everywhere is None and not isinstance(config, RunConfig) and Path(config).is_file()
        if again and launch is not None and _is_alone(launch) and gives_huge_pages_on_request():
            start_anew(allocator_variables(launch.num_gpus))
        tell(notes)
        if everywhere is not None:
            if not argv:
                raise UsageError("a run on other nodes takes its config from a file that they see, too: give its path")
            interrupt.means(NO_RANK_LEFT)
            return start_all_nodes(everywhere, token)
        assert launch is not None
        refuse_what_does_not_answer(paths_of(cfg))
        refuse_nested_launch(launch, "`python -m allranks.train CONFIG`; `allranks train`")
        if launch.accelerate is not None:
            refuse_contradictions(launch.accelerate, cfg)
            if layers := layer_class(launch.accelerate, cfg):
                overrides = {**overrides, LAYER_CLASS: layers}
                cfg = load_config(config, overrides, ignore_unsupported=ignore_unsupported)
        refuse_without_gpu(cfg, launch.num_gpus)
        refuse_wrong_layer_class(cfg)
        refuse_unknown_overrides(cfg, config_json(cfg))
        refuse_unknown_adapter(cfg, stored_config(cfg))
        refuse_stored_weights(cfg)
        refuse_without_deepspeed(cfg)
        if not smoke:
            refuse_restart(cfg, launch)
    if not smoke:
        restarts = Restarts(RunDir(cfg.checkpoint.output_dir), launch.max_restarts)
        after_hang = restarts.after if cfg.live.on_hang == "restart" else None
        return told_restarts(
            launch, lambda now: _Training(now, cfg, argv, fingerprint, in_this_process, after_hang=after_hang)
        )
    trial = Smoke(cfg)
    work = _Training(launch, smoke_config(cfg), argv, fingerprint, in_this_process, smoke=trial)
    return trial.ended(told_attempt(launch, work), speaks=speaks_for_all(launch))


@dataclass(frozen=True)
class _Training:
    """Our engine on a config. `fingerprint`: what the prepared data must have, if that is known. `smoke`: `cfg` is the
    smoke run's of another."""

    launch: Launch
    cfg: RunConfig
    argv: Sequence[str]
    fingerprint: str | None
    in_this_process: bool
    smoke: Smoke | None = None
    after_hang: AfterHang | None = None
    is_engine: bool = True

    @property
    def output_dir(self) -> str:
        return self.cfg.checkpoint.output_dir

    def check(self, node: Node) -> Checked:
        cfg, launch = self.cfg, self.launch
        if self.smoke is not None and not launch.is_elastic:  # no rank of a node that comes later runs yet
            clear_earlier_smoke(node.run)
        if not launch.meets:  # else node 0 refuses, for all nodes at once
            if not launch.num_restarts:
                _refuse_to_mix_runs(cfg, node.run)
            refuse_too_large(cfg, launch)
        if launch.node_rank == 0 or launch.max_nodes == 1:  # where rank 0 will be, which refuses it too
            refuse_missing_packages(cfg)
        for line in cfg.remarks:
            say(line, file=sys.stderr)
        if speaks_for_all(launch):
            say(describe(cfg, launch, node.run))
        variables = network_variables(cfg, launch, node.run.logs(node.name))
        if self.smoke is not None:
            variables |= smoke_variables({**os.environ, **variables}, uses_gpus=launch.num_gpus > 0)
        if launch.num_restarts:
            variables[RESTARTS] = str(launch.num_restarts)
        same = what_must_be_equal(cfg) if launch.max_nodes > 1 else {}
        refuse_unreadable(same)
        return Checked(variables, same, _held(cfg, node.run, is_restarted=launch.num_restarts > 0))

    def preflight(self) -> Preflight | None:
        policy = policy_of(self.cfg, quick=True)
        if is_skipped(self.cfg):
            return None
        request, wanted = probe_request(self.cfg, self.launch), wanted_of(self.cfg, self.launch)
        return Preflight(request, wanted, policy, sizes=sizes_of(self.cfg, self.launch))

    def prepare(self, checked: Checked, peers: Peers) -> RunInputs:
        from allranks.data import prepare  # numpy: 0.1 s that a usage error need not wait for

        with libraries_aside():
            fingerprint = prepare(self.cfg, report=say).fingerprint
        inputs = RunInputs(self.argv, self.cfg, fingerprint, checked.variables, after_hang=self.after_hang)
        _refuse_other_data(inputs, self.fingerprint)
        return replace(inputs, certificate=self._certificate(inputs, peers))

    def _certificate(self, inputs: RunInputs, peers: Peers) -> Mapping[str, Any] | None:
        """In what this start differs from what a smoke run proved; a smoke run notes what it proves itself."""
        nodes = None if self.launch.is_elastic else nodes_of(self.launch, peers.nodes, socket.gethostname())
        env = {**os.environ, **inputs.variables}
        cfg = self.cfg if self.smoke is None else self.smoke.real
        starts = Starts(cfg, inputs.fingerprint, nodes, self.launch.num_gpus > 0, env)
        if self.smoke is not None:
            self.smoke.node, self.smoke.parts = peers.node, parts_now(starts)
            return None
        return compare(starts) if peers.keeps_the_record else None

    def alone(self, peers: Peers, inputs: RunInputs, stop_if_asked: Callable[[], None]) -> int | None:
        if not self.in_this_process or not _is_alone(self.launch):
            return None
        if self.after_hang is not None:  # a thread that hangs cannot be ended; a process can
            return None
        interrupt.means(NO_RANK_LEFT)
        prepare_this_process(self.launch, peers.node, inputs)
        stop_if_asked()
        with libraries_aside():
            from allranks.train.garbage import keep_imports
            from allranks.train.main import main_rank

            keep_imports()
            with watched_alone(self.launch, peers, self.cfg):
                return main_rank(self.cfg)

    def program(self, node: Node) -> Program:
        _write_config(self.cfg, node.run.config(node.name))
        return engine(node.run.config(node.name))

    def conclude(self, started: Started, ended: Ended) -> Verdict:
        return with_rules(training_end(started, ended, self.cfg), started)

    def stopped(self, node: Node, received: signal.Signals) -> Verdict:
        return stopped_training(node.run, node.run_id, node.name, received)


def _is_alone(launch: Launch) -> bool:
    """Whether one rank is all there is, which this process can be itself."""
    return launch.world_size == 1 and launch.launcher == "torchrun"


def _write_config(cfg: RunConfig, path: Path) -> None:
    """The resolved config for the ranks: what was checked is what they run, whatever happens to the user's file."""
    text = f"# {cfg.source}, resolved; the ranks of this node read it\n{cfg.yaml()}"
    durable.write(path, text, make_parents=True)


def _refuse_to_mix_runs(cfg: RunConfig, run: RunDir) -> None:
    # The ranks refuse it too; here it is told before data and model are loaded.
    settings = cfg.checkpoint
    if not settings.resume_from_checkpoint and not settings.auto_resume_from_checkpoints:
        refuse_earlier_run(run.path, [path.name for path in complete_checkpoints(run.checkpoints)])


def _held(cfg: RunConfig, run: RunDir, *, is_restarted: bool) -> Held | None:
    """What this node has of the run's checkpoints; None where the config names the one to go on from."""
    settings = cfg.checkpoint
    if settings.resume_from_checkpoint and not is_restarted:
        return None
    return held(run.checkpoints, "newest" if is_restarted or settings.auto_resume_from_checkpoints else "fresh")


def _refuse_other_data(inputs: RunInputs, fingerprint: str | None) -> None:
    if fingerprint is not None and inputs.fingerprint != fingerprint:
        raise RefusedError(
            f"the prepared data is not that of the recorded run: fingerprint {fingerprint} then, {inputs.fingerprint} "
            "now. The data, the tokenizer or a template has changed; start from a config to train on what is there now"
        )
