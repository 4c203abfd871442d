"""DeepSpeed ZeRO: optimizer state (stage 1), gradients (2) and parameters (3) in pieces, through DeepSpeed's engine.

DeepSpeed averages gradients over ranks, clips and steps; what a step is (its micro-batches, its learning rate, the
weight of each token) stays the loop's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allranks.errors import ConfigError
from allranks.model.train_model import TrainModel
from allranks.model.zero import import_deepspeed, is_partitioned
from allranks.train.strategies.eight_bits import is_packed, narrow, widened
from allranks.train.strategies.flat import FlatRange


class Zero:
    """A `strategy.Strategy`. `settings` are DeepSpeed's own (`model.zero.engine_settings`)."""

    def __init__(self, model: TrainModel, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        device = model.placement.device
        deepspeed = import_deepspeed(device)
        if model.precision.compute == torch.float16 and not _accelerator().is_fp16_supported():
            raise ConfigError("fp16: DeepSpeed does not compute in float16 on this device; set bf16 instead")
        self.engine, *_ = deepspeed.initialize(
            model=model.hf_model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.engine_settings = settings
        self.optimizer = optimizer
        self.module: nn.Module = self.engine
        self.device = device
        self.skips_overflows = model.precision.compute == torch.float16
        self.state = ZeroState(model.hf_model, self.engine, optimizer, whole=model.peft_config is None)
        model.module = self.engine
        if model.probe is not None:
            model.probe()

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Tensor:
        self.engine.step()
        # Only now: before the step it has none.
        return torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)

    def scaler_state(self) -> dict[str, Any] | None:
        return {"scale": float(self.engine.optimizer.cur_scale)} if self.skips_overflows else None

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if self.skips_overflows:
            self.engine.optimizer.loss_scaler.cur_scale = state["scale"]


def _accelerator() -> Any:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()


@dataclass(frozen=True)
class ZeroRange:
    """Elements `start` … of a flattened parameter, which lie at `offset` … of the float32 tensor `flat`."""

    name: str
    shape: torch.Size
    start: int
    numel: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> FlatRange:
        """These elements of `tensor`, which is laid out as `flat` is: the masters, or a state of the optimizer."""
        return FlatRange(tuple(self.shape), self.start, tensor.view(-1)[self.offset : self.offset + self.numel])


class ZeroState:
    """A `strategy.State` in the form of every other strategy's: float32 masters and optimizer state by parameter.

    `whole`: frozen parameters are saved too (`unfrozen_parameters`), as they are, for a model is exported from a
    checkpoint alone.
    """

    def __init__(self, model: nn.Module, engine: Any, optimizer: torch.optim.Optimizer, *, whole: bool = False) -> None:
        self.engine = engine.optimizer
        self.optimizer = optimizer
        named = {id(parameter): name for name, parameter in model.named_parameters()}
        partitioned = engine.zero_optimization_partition_weights()
        self.pieces = list((_pieces_3 if partitioned else _pieces_1_and_2)(self.engine, named))
        self.partitioned = partitioned
        self._frozen = [(name, p) for name, p in model.named_parameters() if whole and not p.requires_grad]
        # Its groups lose their parameters (stage 3), or get flat ones (1 and 2); of whom which settings are, we keep.
        self._group_of = self._groups(named)

    def contents(self, *, only_model: bool) -> dict[str, Any]:
        model = {piece.name: piece.of(piece.flat.data) for piece in self.pieces}
        contents: dict[str, Any] = {"model": {**dict(_as_they_are(self._frozen)), **model}}
        if only_model:
            return contents
        self._make_state()
        tensors: dict[str, Any] = {}
        # Several pieces lie in one tensor.
        states = {id(piece.flat): widened(self.optimizer.state[piece.flat]) for piece in self.pieces}
        for piece in self.pieces:
            for key, value in states[id(piece.flat)].items():
                whole = isinstance(value, Tensor) and value.shape == piece.flat.shape
                # A number (the step) is the same for all; torch's optimizers keep it as a tensor.
                tensors[f"state.{piece.name}.{key}"] = piece.of(value) if whole else torch.as_tensor(float(value))
        for name, index in self._group_of.items():
            group = self.optimizer.param_groups[index]
            tensors |= {f"param_groups.{name}.{key}": value for key, value in group.items() if key != "params"}
        return {**contents, "optimizer": tensors}

    def restore(self, contents: dict[str, Any]) -> None:
        # Pieces share memory with what was loaded into; numbers do not, and what is held in 8 bits neither.
        wide: dict[int, dict[str, Tensor]] = {}
        for piece in self.pieces:
            state = self.optimizer.state[piece.flat]
            for key, value in state.items():
                loaded = contents["optimizer"].get(f"state.{piece.name}.{key}")
                if is_packed(state, key):
                    whole = wide.setdefault(id(piece.flat), {}).setdefault(key, torch.zeros_like(piece.flat.data))
                    piece.of(whole).values.copy_(loaded.values)
                if loaded is None or isinstance(loaded, FlatRange):
                    continue
                if isinstance(value, Tensor):
                    value.fill_(loaded.item())
                else:
                    state[key] = type(value)(loaded.item())
        for flat in {id(piece.flat): piece.flat for piece in self.pieces}.values():
            narrow(self.optimizer.state[flat], wide.get(id(flat), {}))
        with torch.no_grad():
            _to_model(self.engine, partitioned=self.partitioned)

    def _groups(self, named: dict[int, str]) -> dict[str, int]:
        if self.partitioned:
            numbers = self.engine.sub_group_to_group_id
            groups = [(numbers[index], group) for index, group in enumerate(self.engine.fp16_groups)]
        else:
            groups = list(enumerate(_groups_1_and_2(self.engine)))
        return {named[id(parameter)]: index for index, group in groups for parameter in group}

    def _make_state(self) -> None:
        """Have the optimizer make its state, before its first step, by a step of length 0."""
        groups = self.optimizer.param_groups
        missing: dict[int, list[Tensor]] = {}
        for piece in self.pieces:
            flats = missing.setdefault(self._group_of[piece.name], [])
            if piece.flat not in self.optimizer.state and not any(piece.flat is flat for flat in flats):
                flats.append(piece.flat)
        before = [(group["params"], group["lr"]) for group in groups]
        gradients = {id(flat): flat.grad for flats in missing.values() for flat in flats}
        for index, flats in missing.items():
            for group in groups:
                group["params"] = []
            for flat in flats:
                flat.grad = torch.zeros_like(flat)
                groups[index]["params"], groups[index]["lr"] = [flat], 0.0
                self.optimizer.step()
                flat.grad = gradients[id(flat)]
        for group, (parameters, rate) in zip(groups, before, strict=True):
            group["params"], group["lr"] = parameters, rate


def _groups_1_and_2(engine: Any) -> list[list[Any]]:
    # The second is of the optimizer that it takes where bfloat16's gradients are accumulated in float32.
    return engine.bit16_groups if hasattr(engine, "bit16_groups") else engine.bf16_groups


def _pieces_1_and_2(engine: Any, named: dict[int, str]) -> Iterator[ZeroRange]:
    flats = getattr(engine, "single_partition_of_fp32_groups", None)
    if flats is None:
        flats = engine.fp32_groups_flat_partition
    for index, group in enumerate(_groups_1_and_2(engine)):
        for parameter in group:
            held = parameter._hp_mapping
            if held is not None:
                here, there = held.lp_fragment_address, held.hp_fragment_address
                name = named[id(parameter)]
                yield ZeroRange(name, parameter.shape, here.start, here.numel, flats[index], there.start)


def _pieces_3(engine: Any, named: dict[int, str]) -> Iterator[ZeroRange]:
    for group in engine.fp16_groups:
        for parameter in group:
            index, offset, size = engine.grad_position[engine.get_param_id(parameter)]
            start = dist.get_rank(parameter.ds_process_group) * size
            numel = min(size, parameter.ds_numel - start)  # the last piece is padded, and some ranks may have none
            if numel > 0:
                flat = engine.fp32_partitioned_groups_flat[index]
                yield ZeroRange(named[id(parameter)], parameter.ds_shape, start, numel, flat, offset)


def _as_they_are(frozen: list[tuple[str, Any]]) -> Iterator[tuple[str, Tensor | FlatRange]]:
    """This rank's part of parameters that no optimizer has: all of each, or the piece that ZeRO-3 leaves it."""
    for name, parameter in frozen:
        if not is_partitioned(parameter):
            yield name, parameter.data
            continue
        piece = parameter.ds_tensor
        start = dist.get_rank(parameter.ds_process_group) * piece.ds_numel
        numel = min(piece.ds_numel, parameter.ds_numel - start)
        if numel > 0:
            yield name, FlatRange(tuple(parameter.ds_shape), start, piece.data[:numel])


def _to_model(engine: Any, *, partitioned: bool) -> None:
    """Give the model the values of the float32 masters."""
    if not partitioned:
        engine.update_lp_params()
        return
    for index in range(len(engine.fp16_groups)):
        engine._reassign_or_swap_out_partitioned_parameters(index)
    engine.invalidate_secondary_tensor()  # ZeRO++'s copies are made anew by the next forward pass
    # Small parameters stay gathered between steps.
    if engine.persistent_parameters:
        engine.persistent_parameters[0].partition(engine.persistent_parameters)
        engine.persistent_parameters[0].all_gather(engine.persistent_parameters)
