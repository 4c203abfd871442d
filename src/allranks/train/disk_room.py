"""Is there room on every disk for the checkpoints that this run will write? Told before the first step."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from allranks.checkpoint.commit import complete_checkpoints
from allranks.config import RunConfig
from allranks.disk import room
from allranks.listing import si_bytes
from allranks.plan.optimizer_state import state_bytes
from allranks.train.groups import trained_parameters
from allranks.train.loop import Loop
from allranks.train.saved_size import held_here, saved_bytes, share
from allranks.train.step_schedule import wants_result
from allranks.train.storage import Storage, from_all


@dataclass(frozen=True)
class Disk:
    """A folder of checkpoints as the rank that leads it sees it: bytes `free` and `existing` checkpoints."""

    host: str
    free: int
    existing: int


def room_warnings(cfg: RunConfig, loop: Loop, storage: Storage) -> list[str]:
    """What rank 0 is to warn of, a line for each disk that is too small; call it on all ranks.

    On a disk that all nodes share it is the whole checkpoint that counts, on disks of their own each one's part.
    """
    checkpoints = loop.checkpointer.directory
    found = room(checkpoints) if storage.leads else None
    disk = Disk(socket.gethostname(), found[0], len(complete_checkpoints(checkpoints))) if found else None
    everyone = from_all((storage.number, result_bytes(cfg, loop), checkpoint_bytes(cfg, loop), disk))
    result = sum(of_result for _, of_result, _, _ in everyone)  # rank 0 writes it alone
    warnings = []
    for number in range(storage.count):
        size = sum(whole for folder, _, whole, _ in everyone if folder == number)
        disks = [one for folder, _, _, one in everyone if folder == number and one is not None]
        for one in disks[:1]:
            num_new = new_checkpoints(cfg, loop, one.existing)
            told = too_small(one, num_new, size, result if number == 0 else 0.0, cfg.checkpoint.num_kept)
            if told:
                warnings.append(f"output_dir: {checkpoints.parent} {told}")
    return warnings


def result_bytes(cfg: RunConfig, loop: Loop) -> float:
    """This rank's share of the adapter or model that the run ends with: the model in the type that it computes in."""
    if not wants_result(cfg):
        return 0.0
    contents = loop.strategy.state.contents(only_model=True)
    if cfg.adapter.adapter:
        return saved_bytes(contents, loop.plan.world_size)
    size = loop.model.precision.compute.itemsize
    shares = ((share(value, loop.plan.world_size), held_here(value)) for value in contents["model"].values())
    return sum(part / here.element_size() * size for part, here in shares if here is not None)


def checkpoint_bytes(cfg: RunConfig, loop: Loop) -> float:
    """This rank's share of a checkpoint, with the state that the optimizer will have after its first step."""
    world_size, settings = loop.plan.world_size, cfg.optimizer
    contents = loop.strategy.state.contents(only_model=True)
    size_of_model, model = saved_bytes(contents, world_size), contents["model"]
    if cfg.checkpoint.save_only_model:
        return size_of_model
    momentum = bool((settings.optim_args or {}).get("momentum"))
    of_optimizer = 0.0
    for trained in trained_parameters(loop.model.hf_model):
        value = model.get(trained.name)
        here = held_here(value)
        if here is not None and here.numel():
            size = here.element_size()
            each = state_bytes(settings.optimizer, size, is_matrix=trained.is_matrix, momentum=momentum)
            of_optimizer += share(value, world_size) / size * each
    return size_of_model + of_optimizer


def new_checkpoints(cfg: RunConfig, loop: Loop, existing: int) -> int:
    """The most folders that will be there at once, beside the `existing` ones."""
    schedule, keep = loop.step_schedule, cfg.checkpoint.num_kept
    left = sum(step > loop.step for step in schedule.save_at)
    if loop.save_best:
        left += sum(step > loop.step for step in schedule.eval_at - schedule.save_at)
    if keep is None:
        return left
    # The new one is whole before the oldest goes.
    return min(left, max(keep + 1 - existing, 1))


def too_small(disk: Disk, num_new: int, size: float, result: float, keep: int | None) -> str | None:
    """In words, if the disk has not the room for so many checkpoints of `size` and a `result` in bytes."""
    needed = num_new * size + result
    if not num_new or disk.free >= needed:
        return None
    limit = f" (save_total_limit: {keep}, and the one being written)" if keep and num_new > 1 else ""
    checkpoints = f"{num_new} checkpoint{'s' * (num_new > 1)} of {si_bytes(size)}{limit}"
    besides = f" and its result of {si_bytes(result)}" if result else ""
    limiting = "Set save_total_limit" if keep is None else "Lower save_total_limit"
    advice = limiting if num_new > 1 else "Free some room there"
    return (
        f"on {disk.host} has {si_bytes(disk.free)} free, and this run needs about {si_bytes(needed)} there: "
        f"{checkpoints}{besides}. {advice}, or choose another --output-dir, before a save fails"
    )
