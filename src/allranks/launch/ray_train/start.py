"""Start a run with Ray Train, and tell how it ended."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import allranks
from allranks.checkpoint.commit import complete_checkpoints, refuse_earlier_run
from allranks.cluster.cores import usable_cores
from allranks.cluster.gpus import count_gpus
from allranks.cluster.identity import identify
from allranks.config import RunConfig
from allranks.doctor.training_end import stopped_training
from allranks.errors import AllranksError, UsageError
from allranks.launch.certificate import Starts, compare, parts_now
from allranks.launch.describe import resume_line, strategy_name
from allranks.launch.manifest import make_manifest, write_manifest
from allranks.launch.node.live_table import AfterHang, LiveTableKeeper
from allranks.launch.node.ranks import LAUNCH_ID, kill_leftovers
from allranks.launch.node.supervise import remember_signals
from allranks.launch.node.this_node import Node, give_up_locks, this_node
from allranks.launch.peers import Peers
from allranks.launch.ray_train.cluster import Cluster, connected, require_ray
from allranks.launch.ray_train.coordinator import NAMESPACE, Coordinator, RankSpec, Status, coordinator_name
from allranks.launch.ray_train.fit import fit
from allranks.launch.ray_train.plan import Plan
from allranks.launch.ray_train.resources import Demand, demand, fitting, listed, local_size, shortage
from allranks.launch.ray_train.verdict import conclude
from allranks.launch.ray_train.watch import Watch, Watched
from allranks.launch.restarts import Restarts
from allranks.launch.smoke import Smoke, clear_earlier_smoke, smoke_config, smoke_variables
from allranks.launch.spec.exports import exported, working_directory
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import engine
from allranks.launch.spec.where import NodeOptions
from allranks.launch.stop import Stopped, stop_at_once
from allranks.listing import few
from allranks.live.deadlines import limits_of
from allranks.live.live_file import write_end
from allranks.observe import RunDir, say


def with_launcher(overrides: Mapping[str, str], launcher: str | None) -> Mapping[str, str]:
    """The config's overrides with what --launcher says of `use_ray`, where it is given. Raises UsageError."""
    if launcher is None:
        return overrides
    use_ray = "true" if launcher == "ray" else "false"
    if overrides.get("use_ray", use_ray) != use_ray:
        raise UsageError(f"--use-ray {overrides['use_ray']} contradicts --launcher {launcher}: leave one of them out")
    return {**overrides, "use_ray": use_ray}


def start_ray(
    cfg: RunConfig,
    options: LaunchOptions,
    nodes: NodeOptions,
    *,
    argv: Sequence[str] = (),
    smoke: Smoke | None = None,
) -> int:
    """Train what `cfg` says with Ray Train; returns the exit code, as `launch.start.start` does.

    With `smoke` it is a smoke run of `cfg`. Raises AllranksError for what can be refused before any rank starts.
    """
    require_ray()
    _refuse_options(options, nodes)
    if cfg.live.on_hang == "restart" and cfg.launch.ray_max_failures == 0 and smoke is None:
        raise UsageError("on_hang: restart with ray_max_failures: 0: say how often Ray may start the ranks again")
    # The ranks prepare the data, and Ray chooses the nodes: neither is known here.
    starts = Starts(cfg, None, None, count_gpus() > 0, os.environ)
    certificate = compare(starts) if smoke is None else None
    if smoke is not None:
        smoke.parts, cfg = parts_now(starts), smoke_config(cfg)
    node = this_node(cfg.checkpoint.output_dir, resolve(LaunchOptions(grace_seconds=options.grace_seconds)))
    variables: dict[str, str] = {}
    if smoke is not None:
        smoke.node = node
        clear_earlier_smoke(node.run)
        variables = smoke_variables(os.environ, uses_gpus=count_gpus() > 0)
    if not cfg.checkpoint.resume_from_checkpoint and not cfg.checkpoint.auto_resume_from_checkpoints:
        refuse_earlier_run(node.run.path, [path.name for path in complete_checkpoints(node.run.checkpoints)])
    for line in cfg.remarks:
        say(line, file=sys.stderr)
    os.environ[LAUNCH_ID] = node.run_id  # on all that Ray starts here, should it leave any of it
    size = local_size(cfg.launch, num_cores=usable_cores(), num_gpus=count_gpus())
    try:
        with stop_at_once() as stop_if_asked, connected(cfg.launch.ray_address, size) as cluster:
            stop_if_asked()
            watched = _Start(cfg, options, node, argv, cluster, nodes.exports, variables, certificate).run()
    except Stopped as stop:
        verdict = stopped_training(node.run, node.run_id, node.name, stop.received)
    else:
        verdict = conclude(watched, cfg, node.run)
        write_end(node.run, node.run_id, verdict.exit_code, verdict.reason)
    finally:
        kill_leftovers(node.run_id, but=os.getpid())
        give_up_locks(node)
    if verdict.message:
        say(verdict.message, file=sys.stderr)
    return verdict.exit_code if smoke is None else smoke.ended(verdict.exit_code, speaks=True)


@dataclass
class _Start:
    cfg: RunConfig
    options: LaunchOptions
    node: Node
    argv: Sequence[str]
    cluster: Cluster
    exports: Sequence[str]
    variables: Mapping[str, str]
    certificate: Mapping[str, Any] | None

    def run(self) -> Watched:
        import ray

        cfg, run, run_id = self.cfg, self.node.run, self.node.run_id
        settings = cfg.launch
        nodes = self.cluster.nodes()
        wanted = demand(settings, nodes)
        self._describe(wanted, len(nodes))
        if (missing := fitting(wanted.resources, nodes) < wanted.num_workers) and self.cluster.is_ours:
            raise UsageError(f"this machine has not enough: {shortage(wanted, nodes, self.cluster.free())}")
        if missing:
            say(f"waiting for the cluster to grow: {shortage(wanted, nodes, self.cluster.free())}")
        storage = (run.path / "ray" / run_id).absolute()
        name = settings.ray_run_name or _folder_name(Path(cfg.source).stem)
        coordinator = _here(Coordinator, name=coordinator_name(run_id)).remote(self._spec(wanted, storage / name))
        plan = Plan(
            run_id=run_id,
            name=name,
            num_workers=wanted.num_workers,
            resources=wanted.resources,
            placement_strategy=wanted.placement_strategy,
            max_failures=settings.ray_max_failures,
            storage_path=str(storage),
            master_port=self.options.master_port,
        )
        received: list[Any] = []
        keeper = LiveTableKeeper(
            Peers(self.node),
            limits=limits_of(cfg),
            ends=cfg.live.on_hang != "report",
            say=say,
            # The ranks are on other machines, where only their workers look at them.
            explain=lambda peers, found, given_up: found[0],
            after_hang=_after_hang(cfg, self.node.run),
        )
        try:
            with remember_signals(received):
                watch = Watch(
                    coordinator,
                    self.cluster,
                    wanted,
                    received,
                    start_timeout=settings.ray_start_timeout,
                    grace=self.options.grace_seconds,
                    on_start=self._record,
                    keeper=keeper,
                )
                watched = watch.until_end(_here(fit, max_retries=0).remote(plan))
            ray.kill(coordinator)  # else it stays for some moments after this process
            return watched
        except ray.exceptions.RayError as error:
            raise AllranksError(
                f"lost {self.cluster.name}, and the ranks with it: {type(error).__name__}: {error}\n"
                f"  what is saved is in {run.checkpoints}"
            ) from error
        finally:
            keeper.close()

    def _spec(self, wanted: Demand, ray_directory: Path) -> RankSpec:
        text = f"# {self.cfg.source}, resolved; the ranks of this node read it\n{self.cfg.yaml()}"
        return RankSpec(
            run_id=self.node.run_id,
            world_size=wanted.num_workers,
            config=text,
            output_dir=self.cfg.checkpoint.output_dir,
            directory=working_directory(),
            environment={**exported(os.environ, self.exports), **self.variables},
            ray_directory=str(ray_directory),
            version=allranks.__version__,
        )

    def _describe(self, wanted: Demand, num_nodes: int) -> None:
        workers = f"{wanted.num_workers} worker(s) of Ray, {wanted.reason}, with {listed(wanted.resources)} each"
        lines = {
            "config": self.cfg.source,
            "strategy": strategy_name(self.cfg, wanted.num_workers),
            "world size": f"{wanted.num_workers} = {workers}",
            "cluster": f"{self.cluster.name}, {num_nodes} node(s)",
            "run": self.node.run.path,
            "resume": resume_line(self.cfg, self.node.run),
            "command": f"{shlex.join(self._command())}  (each rank)",
        }
        for key, value in lines.items():
            say(f"{key + ':':<12}{value}")

    def _command(self) -> list[str]:
        return [sys.executable, *engine(self.node.run.config("R")).words()]

    def _record(self, status: Status) -> None:
        """All ranks have started: show where, and write the manifest."""
        nodes: dict[int, dict[str, Any]] = {}
        for rank, placement in sorted(status.placements.items()):
            node = nodes.setdefault(placement.node_rank, {"host": placement.host, "processes": 0, "ranks": []})
            node["ranks"].append(rank)
            node["processes"] += 1
        shown = [f"{node['host']}: {', '.join(map(str, node['ranks']))}" for _, node in sorted(nodes.items())]
        say(f"{'ranks:':<12}{few(shown, 16, between='; ', rest='; and {:,} more nodes')}")
        manifest = make_manifest(
            run_id=self.node.run_id,
            argv=["allranks", *self.argv],
            config={**self.cfg.flat(), "ray_num_workers": len(status.placements)},
            config_source=str(self.cfg.source),
            fingerprint=None,  # the ranks prepare the data, on their nodes
            nodes={str(node): facts for node, facts in nodes.items()},
            command=self._command(),
            environment=os.environ,
            launch={
                "launcher": "ray",
                "grace_seconds": self.options.grace_seconds,
                "master_port": self.options.master_port,
            },
            certificate=self.certificate,
        )
        write_manifest(self.node.run.manifest, manifest)


def _after_hang(cfg: RunConfig, run: RunDir) -> AfterHang | None:
    """Whether Ray is to start all ranks again."""
    if cfg.live.on_hang != "restart":
        return None
    most = cfg.launch.ray_max_failures
    return Restarts(run, sys.maxsize if most < 0 else most).after


def _here(what: Any, **options: Any) -> Any:
    """An actor class or function of Ray's, to be run on the driver's node, whatever else is reserved there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    if isinstance(what, type):
        options["namespace"] = NAMESPACE
    else:
        # Ray's own settings for its trainer are read where the trainer is made.
        ours = {key: value for key, value in os.environ.items() if key.startswith("RAY_TRAIN_")}
        options["runtime_env"] = {"env_vars": ours}
    return ray.remote(what).options(num_cpus=0, scheduling_strategy=here, **options)


def _folder_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text).strip(".-") or "allranks"


def _refuse_options(options: LaunchOptions, nodes: NodeOptions) -> None:
    if not (identity := identify(os.environ)).alone:
        raise UsageError(
            f"this process is rank {identity.rank} of {identity.world_size} (from {identity.source}): Ray starts the "
            "ranks itself; start `allranks train --launcher ray` once, on one node"
        )
    instead = {
        "nnodes": "Ray's cluster says which nodes there are",
        "node_rank": "Ray's cluster says which nodes there are",
        "nproc_per_node": "use --ray-num-workers, the number of all ranks",
        "master_addr": "Ray chooses the node of rank 0; the cluster's address is --ray-address",
        "rdzv_backend": "rank 0's node is the rendezvous",
        "rdzv_id": "rank 0's node is the rendezvous",
        "rdzv_endpoint": "rank 0's node is the rendezvous",
        "max_restarts": "use --ray-max-failures",
        "launcher_args": "there is no torchrun below Ray",
    }
    if nodes.hosts is not None or nodes.hostfile is not None:
        raise UsageError("--hosts and --hostfile are not for --launcher ray: Ray's cluster says which nodes there are")
    for name, text in instead.items():
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for --launcher ray: {text}")
