"""The Ray cluster of a run: one that is there, by its address, or one of its own on this machine."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from allranks.errors import AllranksError, UsageError
from allranks.launch.ray_train.coordinator import NAMESPACE
from allranks.launch.stop import Stopped
from allranks.observe import say

LOCAL = "local"
_FOLDER = "allranks-ray-"
# The sockets of Ray's session lie below it, and the path of a socket has 107 bytes at most.
_TEMPORARY = Path("/tmp")
# Ray's head answers at once; a packet filter that drops would let us wait for minutes.
_CONNECT_SECONDS = 10.0
# The least that Ray takes (bytes); our data does not go through Ray.
_OBJECT_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Cluster:
    """`nodes`: the resources of each node that is alive, by its address."""

    address: str
    is_ours: bool

    def nodes(self) -> dict[str, dict[str, float]]:
        import ray

        return {node["NodeManagerAddress"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}

    def free(self) -> Mapping[str, float]:
        """What nobody has reserved, over all nodes."""
        import ray

        return dict(ray.available_resources())

    @property
    def name(self) -> str:
        return "a Ray cluster of this run's own, here" if self.is_ours else f"the Ray cluster at {self.address}"


def require_ray() -> None:
    """Raises UsageError where Ray Train is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pandas") is None:
        raise UsageError("--launcher ray needs Ray Train, which is not installed: pip install 'allranks[ray]'")


@contextlib.contextmanager
def connected(address: str | None, local_size: Mapping[str, int]) -> Iterator[Cluster]:
    """Connect to the cluster at `address` (HOST:PORT, auto, local; None: RAY_ADDRESS, else that of
    `ray start` on this machine, else local).

    A local one has `local_size` (CPU and GPU), listens on the loopback interface only, and ends with the context; what
    was asked of another cluster, which is left running, ends with it too. Raises AllranksError where there is none.
    """
    asked = address or os.environ.get("RAY_ADDRESS") or _started_here() or LOCAL
    _remove_stale_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=_TEMPORARY))
    try:
        yield _connect(asked, folder, local_size)
    finally:
        _disconnect()
        shutil.rmtree(folder, ignore_errors=True)


def _disconnect() -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    else:
        # Stopped in the middle of its start, Ray would abort in its own shutdown; the processes that it started die
        # with this one.
        atexit.unregister(ray.shutdown)


def _remove_stale_folders() -> None:
    """Remove what a driver left that was killed: Ray's logs and sockets of its local cluster."""
    for folder in _TEMPORARY.glob(f"{_FOLDER}*-*"):
        pid = folder.name.removeprefix(_FOLDER).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not psutil.pid_exists(int(pid)) and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _started_here() -> str | None:
    """The address of the cluster that `ray start` has made this machine part of, if it answers."""
    # Ray's own search would also find the local cluster of another run.
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
        _reach(address)
    except (OSError, AllranksError):
        return None
    return address


def _connect(asked: str, folder: Path, local_size: Mapping[str, int]) -> Cluster:
    if asked.startswith("ray://"):
        raise UsageError(
            f"Ray address {asked}: Ray Client (ray://) cannot be used; start on a node of the cluster with HOST:PORT, "
            "or let Ray start it there: ray job submit -- allranks train …"
        )
    if asked not in ("auto", LOCAL):
        _reach(asked)
    if asked != LOCAL:
        try:
            return Cluster(_init(address=asked), is_ours=False)
        except ConnectionError as error:
            raise AllranksError(_no_cluster(asked, error)) from None
    say("starting a Ray cluster of this run's own on this machine")
    # Whoever reaches Ray's ports runs what he likes as this user: without this variable, which Ray reads when it is
    # imported and which macOS need not have, it would take 127.0.0.1 for a mistake, and listen on all interfaces.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Ray's workers, and so our ranks, would be at niceness 15, and hardly run beside anything else on this machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    _init(
        address=LOCAL,
        num_cpus=local_size["CPU"],
        num_gpus=local_size["GPU"],
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
    )
    return Cluster(LOCAL, is_ours=True)


def _init(**settings: Any) -> str:
    """Initialise Ray in this process; the address of the cluster. Raises ConnectionError and AllranksError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing goes out that nobody asked for
    import ray

    # Ray's processes inherit the mask: Ctrl-C and a closed terminal are for us to hear, not for them to die of.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        context: Any = ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except SystemExit:
        raise Stopped(signal.SIGTERM) from None  # Ray puts a handler of its own in the place of ours
    except ConnectionError:
        raise
    except Exception as error:  # Ray raises RuntimeError, ValueError and its own
        raise AllranksError(
            f"Ray ({settings['address']}) cannot be used: {_first_lines(error)}\n"
            "The driver must run on a node of the cluster, with the cluster's versions of Ray and Python"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return str(context.address_info["gcs_address"])


def _reach(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"Ray address {address}: expected HOST:PORT (Ray's default port is 6379), auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise AllranksError(_no_cluster(address, error)) from None


def _no_cluster(address: str, error: OSError) -> str:
    if address == "auto":
        return (
            "no Ray cluster runs on this machine: start one (`ray start --head`, and on the other nodes "
            "`ray start --address HOST:6379`), name another with --ray-address, or say --ray-address local"
        )
    return (
        f"no Ray cluster answers at {address}: {error.strerror or error}. Is Ray running there (`ray status` tells), "
        "and is the port open to this node?"
    )


def _first_lines(error: Exception) -> str:
    return "\n  ".join(line.strip() for line in str(error).strip().splitlines()[:6])
