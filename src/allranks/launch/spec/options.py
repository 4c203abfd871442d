"""What the user asked for about nodes and processes, checked before anything starts."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from allranks.cluster.gpus import count_gpus
from allranks.errors import UsageError
from allranks.launch.spec.accelerate_settings import AccelerateSettings, read_settings, with_places

STATIC_PORT = 29500  # torchrun's defaults for the two rendezvous
C10D_PORT = 29400
LAUNCHERS = ("torchrun", "accelerate", "deepspeed")


@dataclass(frozen=True)
class LaunchOptions:
    """The launch as asked for (None = not given); `resolve` makes it definite."""

    nnodes: str | None = None
    node_rank: int | None = None
    nproc_per_node: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    rdzv_backend: str | None = None
    rdzv_id: str | None = None
    rdzv_endpoint: str | None = None
    max_restarts: int = 0
    launcher: str | None = None
    grace_seconds: float = 300.0
    join_seconds: float = 600.0
    silence_seconds: float = 10.0
    skip_connection_check: bool = False
    launcher_args: tuple[str, ...] = ()
    accelerate_config: str | None = None
    accelerate_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """A definite launch. `address` is where the nodes meet; `node_rank` is None where c10d deals the ranks out."""

    launcher: str
    min_nodes: int
    max_nodes: int
    node_rank: int | None
    nproc_per_node: int
    num_gpus: int
    backend: str
    address: str
    port: int
    rdzv_id: str
    max_restarts: int
    grace_seconds: float
    join_seconds: float
    silence_seconds: float
    launcher_args: tuple[str, ...]
    accelerate: AccelerateSettings | None = None
    token: str = field(default="", repr=False)
    """By which the nodes know each other."""
    skip_connection_check: bool = False
    says_nnodes: bool = True
    """Whether the number of nodes was given at all: else this one is alone because nothing names others."""
    num_restarts: int = 0
    """How often all ranks have been started again."""

    @property
    def restarts_left(self) -> int:
        """How often the launcher may yet start the ranks again."""
        return self.max_restarts - self.num_restarts

    @property
    def world_size(self) -> int:
        """Of the largest number of nodes, if all have as many processes as this one."""
        return self.max_nodes * self.nproc_per_node

    @property
    def equal_nodes(self) -> bool:
        """Whether all nodes are known to have as many processes as this one: torchrun lets each choose."""
        return self.max_nodes == 1 or self.launcher != "torchrun"

    @property
    def meets(self) -> bool:
        """Whether this node meets the others before its launcher starts, and hears of them while it runs."""
        return self.max_nodes > 1 and not self.is_elastic

    @property
    def is_elastic(self) -> bool:
        """Whether torchrun may go on with other nodes than those that came first: then it watches over them alone."""
        is_several = self.max_nodes > 1 and self.backend == "c10d"
        return is_several and (self.min_nodes != self.max_nodes or self.max_restarts > 0)

    @property
    def endpoint(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def resolve(options: LaunchOptions, *, num_gpus: int | None = None) -> Launch:
    """Check the options against each other and fill in defaults. Raises UsageError naming what is missing or wrong.

    Processes per node default to the node's GPUs (1 on a machine without). What Accelerate was told counts as given.
    """
    launcher = options.launcher or "torchrun"
    if launcher not in LAUNCHERS:
        raise UsageError(
            f"--launcher {launcher}: expected {', '.join(LAUNCHERS)} or ray; start a launcher of your own with "
            "`-m allranks.train CONFIG` as its program"
        )
    settings = None
    if launcher == "accelerate":
        settings = read_settings(options.accelerate_config, options.accelerate_options)
        options = with_places(options, settings)
    elif options.accelerate_config:
        raise UsageError(f"--accelerate-config is for --launcher accelerate, not for {launcher}")
    min_nodes, max_nodes = _nodes(options.nnodes)
    if options.nnodes is None:
        _refuse_halves_of_a_multi_node_launch(options)
    num_gpus = count_gpus() if num_gpus is None else num_gpus
    nproc_per_node = _processes(options.nproc_per_node, num_gpus)
    if options.max_restarts < 0:
        raise UsageError(f"--max-restarts {options.max_restarts}: expected 0 or more")
    for name, seconds, least in (
        ("--grace-seconds", options.grace_seconds, 0),
        ("--join-timeout", options.join_seconds, 0),
        # A pulse goes every second.
        ("--node-timeout", options.silence_seconds, 3),
    ):
        if not (seconds > least and math.isfinite(seconds)):
            raise UsageError(f"{name} {seconds}: expected a time above {least} s")
    launch = Launch(
        launcher,
        min_nodes,
        max_nodes,
        options.node_rank,
        nproc_per_node,
        num_gpus,
        # A single node needs no rendezvous: c10d with port 0 lets the kernel choose a free port, without a race.
        backend="c10d",
        address="127.0.0.1",
        port=0,
        rdzv_id=options.rdzv_id or "allranks",
        max_restarts=options.max_restarts,
        grace_seconds=options.grace_seconds,
        join_seconds=options.join_seconds,
        silence_seconds=options.silence_seconds,
        skip_connection_check=options.skip_connection_check,
        launcher_args=options.launcher_args,
        accelerate=settings,
        says_nnodes=options.nnodes is not None,
    )
    if launcher != "torchrun":
        _refuse_what_only_torchrun_can(options, launch)
    if max_nodes == 1:
        if options.node_rank not in (None, 0):
            raise UsageError(f"--node-rank {options.node_rank} with --nnodes 1: a single node has rank 0")
        return replace(launch, node_rank=0)
    return _rendezvous_point(launch, options)


def with_given_places(options: LaunchOptions) -> LaunchOptions:
    """The options with what Accelerate was told about nodes, where it was told anything. Raises ConfigError."""
    if options.launcher != "accelerate":
        return options
    return with_places(options, read_settings(options.accelerate_config, options.accelerate_options))


def _refuse_what_only_torchrun_can(options: LaunchOptions, launch: Launch) -> None:
    why = None
    if launch.min_nodes != launch.max_nodes:
        why = f"--nnodes {options.nnodes}: a range of nodes"
    elif options.rdzv_backend not in (None, "static") or (options.rdzv_endpoint and options.node_rank is None):
        why = "c10d rendezvous"
    elif launch.launcher == "deepspeed" and options.max_restarts:
        why = "--max-restarts"
    if why:
        raise UsageError(f"{why} needs --launcher torchrun; {launch.launcher} has no such thing")
    if importlib.util.find_spec(launch.launcher) is None:
        raise UsageError(f"--launcher {launch.launcher}: not installed here; pip install 'allranks[{launch.launcher}]'")


def _rendezvous_point(launch: Launch, options: LaunchOptions) -> Launch:
    backend = options.rdzv_backend
    if backend is None:
        backend = "c10d" if options.rdzv_endpoint and options.node_rank is None else "static"
    if backend not in ("static", "c10d"):
        raise UsageError(f"--rdzv-backend {backend}: expected static or c10d")
    if backend == "static" and launch.min_nodes != launch.max_nodes:
        raise UsageError(f"--nnodes {options.nnodes}: a range of nodes needs --rdzv-backend c10d")
    address, port = options.master_addr, options.master_port
    if options.rdzv_endpoint:
        if address or port:
            raise UsageError("--rdzv-endpoint and --master-addr/--master-port name the same thing: give one of them")
        address, port = _split_endpoint(options.rdzv_endpoint)
    missing = []
    if not address:
        missing.append(
            "--rdzv-endpoint HOST:PORT" if backend == "c10d" else "--master-addr HOST (the address of node 0)"
        )
    if backend == "static" and options.node_rank is None:
        missing.append(f"--node-rank R (0 to {launch.max_nodes - 1}, another on each node)")
    if missing:
        raise UsageError(f"--nnodes {options.nnodes} also needs {' and '.join(missing)}")
    if options.node_rank is not None and not 0 <= options.node_rank < launch.max_nodes:
        raise UsageError(
            f"--node-rank {options.node_rank} with --nnodes {options.nnodes}: node ranks go from 0 to "
            f"{launch.max_nodes - 1}"
        )
    port = port if port is not None else (C10D_PORT if backend == "c10d" else STATIC_PORT)
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port}: expected 1 to 65535, the same on all nodes")
    assert address is not None
    return replace(launch, backend=backend, address=address, port=port)


def _refuse_halves_of_a_multi_node_launch(options: LaunchOptions) -> None:
    # Without this every node would train alone, at world size 1, and exit 0.
    given = [
        name
        for name, value in (
            ("--node-rank", options.node_rank),
            ("--master-addr", options.master_addr),
            ("--master-port", options.master_port),
            ("--rdzv-backend", options.rdzv_backend),
            ("--rdzv-endpoint", options.rdzv_endpoint),
        )
        if value is not None
    ]
    if given:
        raise UsageError(f"{' and '.join(given)} without --nnodes: say how many nodes take part (--nnodes N)")


def _nodes(text: str | None) -> tuple[int, int]:
    low, colon, high = (text or "1").partition(":")
    if low.isdigit() and (high.isdigit() if colon else True):
        nodes = int(low), int(high or low)
        if 1 <= nodes[0] <= nodes[1]:
            return nodes
    raise UsageError(f"--nnodes {text}: expected a number of nodes, or MIN:MAX with --rdzv-backend c10d")


def _processes(asked: int | None, num_gpus: int) -> int:
    if asked is None:
        return max(1, num_gpus)
    if asked < 1:
        raise UsageError(f"--nproc-per-node {asked}: expected 1 or more")
    if 0 < num_gpus < asked:
        raise UsageError(
            f"--nproc-per-node {asked}, but this node has {num_gpus} visible GPU(s) and each process needs its own "
            "(CUDA_VISIBLE_DEVICES='' trains on the CPU)"
        )
    return asked


def _split_endpoint(endpoint: str) -> tuple[str, int | None]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or endpoint.endswith("]"):
        return endpoint.strip("[]"), None
    if not host or not port.isdigit():
        raise UsageError(f"--rdzv-endpoint {endpoint}: expected HOST or HOST:PORT")
    return host.strip("[]"), int(port)
