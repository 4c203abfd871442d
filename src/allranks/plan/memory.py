"""The memory that a rank needs at its fullest, in closed form, by what it goes into. Needs no torch; answers at once.

What is held all the time (`held_memory`) is known to the element. On top of it comes one of fifteen moments: before
the first step, when ranks are given the same weights; in the forward pass the last layers, when the next is gathered
and at work, the output layer and the loss; in the backward pass the output layer, then the last and the first layer,
each at work and with its gradients on their way, and the embedding; the optimizer's step; and of an evaluation with
larger micro-batches a layer and the loss. The largest counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from allranks.plan.activations import Activations, activations
from allranks.plan.communication_memory import Gathered, gathered
from allranks.plan.hardware import Device
from allranks.plan.held_memory import Held, held
from allranks.plan.host_memory import host_memory
from allranks.plan.loss_memory import LossMemory, loss_memory
from allranks.plan.reserve import reserve
from allranks.plan.workload import RankMemory, Workload


def rank_memory(workload: Workload, device: Device | None = None) -> RankMemory:
    """Of rank 0 of `workload`, on a GPU of the kind `device` (for the driver's share; None: a usual one)."""
    largest = fullest(workload)
    return replace(largest, reserve=reserve(workload, largest.total, device), host=host_memory(workload))


def fullest(workload: Workload) -> RankMemory:
    """The moment in which tensors take most; without a reserve."""
    return max(_moments(_Parts.of(workload)), key=lambda moment: moment.total)


def at_step(workload: Workload) -> RankMemory:
    """The optimizer's step; without a reserve."""
    return _at_step(_Parts.of(workload))


def kept_by_layers(workload: Workload) -> float:
    """Bytes that the graph of one micro-batch's forward pass holds, its ends apart."""
    return _Parts.of(workload).all_layers


@dataclass(frozen=True)
class _Parts:
    workload: Workload
    held: Held
    kept: Activations
    loss: LossMemory
    gathered: Gathered

    @classmethod
    def of(cls, workload: Workload) -> _Parts:
        return cls(workload, held(workload), activations(workload), loss_memory(workload), gathered(workload))

    @property
    def all_layers(self) -> float:
        """What the graph of a forward pass holds, its ends apart."""
        layers = self.workload.shape.num_layers
        if self.workload.offloads_activations:
            return 0.0
        if self.workload.recomputes:
            return layers * self.kept.input
        return (layers - 1) * self.kept.layer + self.kept.first_layer + self.kept.casts

    @property
    def layers_before_last(self) -> float:
        """The same when the last one has its gradients."""
        return max(0.0, self.all_layers - (self.kept.input if self.workload.recomputes else self.kept.layer))

    @property
    def layer_again(self) -> float:
        """What a layer that is computed again holds beside its input."""
        return max(0.0, self.kept.widest_layer - self.kept.input) if self.workload.recomputes else 0.0


def _moments(parts: _Parts) -> Iterator[RankMemory]:
    own, kept, loss, buffers = parts.held, parts.kept, parts.loss, parts.gathered
    at = partial(_moment, own.parameters, own.gradients_between, own.optimizer)
    yield _moment(own.parameters, 0.0, 0.0, communication=buffers.start)
    yield at(activations=parts.layers_before_last, communication=buffers.gathering)
    yield at(activations=parts.layers_before_last + kept.working, communication=buffers.middle_forward)
    yield at(activations=parts.all_layers + kept.working, communication=buffers.last_forward)
    yield at(activations=parts.all_layers + kept.ends, communication=buffers.before_head)
    yield at(
        activations=parts.all_layers + kept.ends + (kept.casts if parts.workload.recomputes else 0.0),
        logits=loss.making,
        communication=buffers.at_loss,
    )
    yield at(activations=parts.all_layers, logits=loss.leaving, communication=buffers.head)
    yield at(
        activations=parts.all_layers + parts.layer_again + kept.working + kept.sums,
        logits=loss.kept,
        communication=buffers.last_layer,
    )
    yield at(activations=parts.layers_before_last, communication=buffers.last_reduced)
    waiting = loss.joining if parts.workload.layout.kind == "fsdp" else 0.0
    late = partial(_moment, own.parameters, max(own.gradients_between, own.gradients_of_layers), own.optimizer)
    first = kept.input + parts.layer_again + kept.working + kept.sums
    yield late(activations=first, logits=waiting, communication=buffers.first_layer)
    yield late(activations=kept.input, logits=waiting, communication=buffers.first_reduced)
    # A shared embedding has a gradient of its own, which is added to the output layer's.
    yield _moment(own.parameters, own.gradients, own.optimizer, activations=kept.input, logits=loss.joining)
    yield _at_step(parts)
    if parts.workload.evaluation_batch_size > parts.workload.micro_batch_size:
        yield from _evaluation(parts)


def _at_step(parts: _Parts) -> RankMemory:
    own = parts.held
    return _moment(own.parameters, own.gradients, own.optimizer + own.step, communication=parts.gathered.step)


def _evaluation(parts: _Parts) -> Iterator[RankMemory]:
    """A layer's forward pass, and the loss, of a larger micro-batch without gradients."""
    workload = replace(parts.workload, micro_batch_size=parts.workload.evaluation_batch_size, trains_embeddings=False)
    gradients = held(replace(workload, num_micro_batches=1)).gradients_between
    after_step = partial(_moment, parts.held.parameters, gradients, parts.held.optimizer)
    passing, buffers = activations(workload), parts.gathered
    gathered_then = max(buffers.middle_forward, buffers.last_forward)
    yield after_step(activations=passing.passing, communication=gathered_then)
    making = loss_memory(workload).making
    yield after_step(activations=passing.input, logits=making, communication=buffers.at_loss)


def _moment(
    parameters: float,
    gradients: float,
    optimizer: float,
    activations: float = 0.0,
    logits: float = 0.0,
    communication: float = 0.0,
) -> RankMemory:
    return RankMemory(parameters, gradients, optimizer, activations, logits, communication, reserve=0.0)
