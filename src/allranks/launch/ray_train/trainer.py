"""Ray Train's trainer of a run. Imported inside the cluster only: the driver does without ray.train.

It is the class below TorchTrainer, which adds nothing that our engine does not do itself, and imports torch: some
seconds in each of three processes that start one after the other, at every start and restart.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from allranks.launch.ray_train.coordinator import NAMESPACE, coordinator_name
from allranks.launch.ray_train.plan import Fitted, Plan
from allranks.launch.ray_train.worker import run_rank


def fit_trainer(plan: Plan) -> Fitted:
    """Have Ray Train run the ranks, again from the newest checkpoint after failures, until they are done."""
    rendezvous_point: Any = RendezvousPoint(plan.run_id, plan.master_port)
    of_run: dict[str, Any] = {
        "failure_config": FailureConfig(max_failures=plan.max_failures),
        "callbacks": [TellCoordinator(plan.run_id)],
        "logging_config": LoggingConfig(log_level="WARNING"),
    }
    trainer = DataParallelTrainer(
        run_rank,
        train_loop_config={"run_id": plan.run_id},
        backend_config=rendezvous_point,
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=plan.resources.get("GPU", 0) > 0,
            resources_per_worker=dict(plan.resources),
            placement_strategy=plan.placement_strategy,
        ),
        run_config=RunConfig(name=plan.name, storage_path=plan.storage_path, **of_run),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        return Fitted(error=str(error))
    return Fitted(metrics=result.metrics, checkpoint=result.checkpoint.path if result.checkpoint else None)


@dataclass
class RendezvousPoint(BackendConfig):
    """In place of Ray's TorchConfig, which would join a process group in Ray's worker: our engine has its own.

    It tells the ranks where to meet: rank 0's address, and a port that is free there (or `master_port`).
    """

    run_id: str
    master_port: int | None

    @property
    def backend_cls(self) -> type[Backend]:
        return _RendezvousPoint


class _RendezvousPoint(Backend):
    # As under torchrun: each rank sees all GPUs that the run has on its node, and takes the one of its local rank.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, RendezvousPoint)
        address, port = worker_group.execute_single(0, _address_and_port, backend_config.master_port)
        ray.get(_coordinator(backend_config.run_id).begin.remote(address, port))


def _address_and_port(port: int | None) -> tuple[str, int]:
    address = ray.util.get_node_ip_address()
    if port is None:
        # Somebody else may take it until the ranks meet; then they fail, and the next attempt has another.
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
    return address, port


class TellCoordinator(UserCallback):
    """Tells the driver what Ray says of workers that failed, and Ray when not to try again."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = {rank: str(error) for rank, error in worker_exceptions.items()}
        if not ray.get(_coordinator(self.run_id).fail.remote(errors)):
            # Ray Train retries what workers raise, but not what a callback does.
            raise RuntimeError("another attempt would fail in the same way")


def _coordinator(run_id: str) -> Any:
    return ray.get_actor(coordinator_name(run_id), namespace=NAMESPACE)
