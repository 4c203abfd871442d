"""The loss of a model on data sets, by token and by example, on one process or many. Read `evaluate` from the top."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from allranks.cluster.identity import Identity, identify
from allranks.config import RunConfig
from allranks.data import BatchPlan, BlockOrder, BlockSet, load_tokenizer, prepare
from allranks.errors import DataError, UsageError
from allranks.export.checkpoint import Checkpoint
from allranks.inference.evaluation_config import EvaluationData, evaluation_data, model_keys
from allranks.inference.subject import Subject, find_subject
from allranks.inference.weights import read_weights
from allranks.model.build import build_model
from allranks.model.placement import Placement, place
from allranks.model.quantized.settings import require_library
from allranks.model.train_model import TrainModel
from allranks.train import world
from allranks.train.feed import feed
from allranks.train.storage import from_rank_0
from allranks.train.strategies.native import trained_state

# While one rank prepares data, or reads a large checkpoint to the last byte, the others wait.
_TIMEOUT_SECONDS = 1800.0
_TOLD_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Score:
    """`loss`: mean cross entropy over all target tokens; `example_loss`: the mean over examples of each one's mean."""

    loss: float
    example_loss: float

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def example_perplexity(self) -> float:
        return perplexity(self.example_loss)


@dataclass(frozen=True)
class DataScore:
    """One data set: what is in it, and the model's score; `base`: that of what it was trained from, where asked.

    `num_left_out`: records that are no examples: too long for `sequence_len`, broken, or without a target.
    """

    name: str
    num_examples: int
    num_target_tokens: int
    score: Score
    base: Score | None = None
    num_left_out: int = 0


@dataclass(frozen=True)
class Evaluation:
    """`total` is over all data sets; None where there is but one."""

    title: str
    step: int | None
    data: tuple[DataScore, ...]
    total: DataScore | None


def perplexity(loss: float) -> float:
    """e to the power of the loss; infinite where that is too large a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def evaluate(
    named: str,
    *,
    files: Sequence[str] = (),
    data_type: str | None = None,
    step: int | None = None,
    base_model: str | None = None,
    compare_base: bool = False,
    trust_remote_code: bool = False,
    overrides: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate what `named` is (`subject.find_subject`); call it on all ranks, which share the work.

    A run is built as its training built it, in the same precision, and scores the same loss as its own evaluation at
    that step. `files`: data to evaluate on; what the run set aside by default. `data_type`: form of their records.
    `compare_base`: also score what was trained from. `overrides`: dotted config keys -> YAML text.

    Raises AllranksError for what its callers can mend.
    """
    identity = identify(os.environ)
    device = world.join(identity, timeout_seconds=_TIMEOUT_SECONDS, needs_group=False)
    subject = _same_subject(
        identity, named, step=step, base_model=base_model, trust_remote_code=trust_remote_code, report=report
    )
    if compare_base and subject.kind == "model":
        raise UsageError(f"{named} is a whole model, so its base is not known: leave --compare base out, or give a run")
    keys = model_keys(subject, num_ranks=identity.world_size)
    data = evaluation_data(subject, keys, files, overrides or {}, data_type=data_type)
    prepared = [_prepared(one, identity, report) for one in data]
    blocks = [of_one for of_one, _ in prepared]
    world.check_equal({"data": [len(one.tokens) for one in blocks]}, identity)

    cfg = data[0].config
    require_library(cfg)
    placement = _placement(cfg, identity, device)
    base_scores: list[_Sums] | None = None
    if compare_base and subject.kind == "adapter":
        base_keys = {key: value for key, value in keys.items() if key not in ("adapter", "lora_model_dir")}
        base_cfg = evaluation_data(subject, base_keys, files, overrides or {}, data_type=data_type)[0].config
        report(f"loading the base model {subject.base}")
        base_scores = _scores(build_model(base_cfg, placement, tokenizer=_tokenizer(base_cfg)), blocks, cfg, report)
    report(f"loading {subject.title}")
    model = build_model(cfg, placement, tokenizer=_tokenizer(cfg))
    if subject.checkpoint is not None:
        if compare_base:  # before its weights are loaded the model is what the training began with
            base_scores = _scores(model, blocks, cfg, report)
        load_trained(model, subject.checkpoint)
    scores = _scores(model, blocks, cfg, report)
    found = tuple(
        _told(one.name, score, base_scores[index] if base_scores else None, prepared[index][1])
        for index, (one, score) in enumerate(zip(data, scores, strict=True))
    )
    total = None
    if len(found) > 1:
        base_sum = sum(base_scores[1:], base_scores[0]) if base_scores else None
        total = _told("all", sum(scores[1:], scores[0]), base_sum, sum(count for _, count in prepared))
    return Evaluation(subject.title, subject.checkpoint.step if subject.checkpoint else None, found, total)


def load_trained(model: TrainModel, checkpoint: Checkpoint) -> None:
    """Put the checkpoint's trained weights into a model that was built from its config; call it on all ranks."""
    contents = read_weights(trained_state(model.hf_model, whole=model.peft_config is None), checkpoint)
    set_model_state_dict(model.hf_model, contents, options=StateDictOptions(ignore_frozen_params=True, strict=False))


def _same_subject(identity: Identity, named: str, *, step: int | None, **options: Any) -> Subject:
    """Rank 0 chooses the checkpoint, after reading every byte of it; the others take the same."""
    if identity.rank == 0:
        subject = find_subject(named, step=step, **options)
        from_rank_0(str(subject.checkpoint.path) if subject.checkpoint else None)
        return subject
    chosen = from_rank_0(None)
    return find_subject(chosen or named, step=None if chosen else step, verified=True, **options)


def _prepared(data: EvaluationData, identity: Identity, report: Callable[[str], None]) -> tuple[BlockSet, int]:
    """The blocks of a data set, and how many of its records are in none of them."""
    prepared = prepare(data.config, report=report if identity.rank == 0 else None)
    blocks = prepared.train if data.split == "train" else prepared.eval
    if blocks is None or not blocks.target_counts.any():
        raise DataError(
            f"{data.name}: nothing in it is a target, so it has no loss: look at it with `allranks preprocess CONFIG "
            "--show 3`"
        )
    sources = prepared.stats["datasets"] if data.split == "train" else []
    left_out = ("invalid", "too_long", "too_short", "no_target", "duplicates")
    return blocks, sum(source.get(key, 0) for source in sources for key in left_out)


def _placement(cfg: RunConfig, identity: Identity, device: torch.device) -> Placement:
    nodes = world.nodes_of_ranks(identity)
    placement = place(cfg, device, identity.rank, identity.world_size, nodes)
    if placement.kind != "ddp":
        return placement
    # Nothing is trained, so replicas need no gradients of each other.
    return Placement("single", device, None, identity.rank, identity.world_size, nodes)


def _tokenizer(cfg: RunConfig) -> Any:
    may_have_more = cfg.model.tokens or cfg.model.special_tokens or cfg.model.tokenizer_config
    return load_tokenizer(cfg) if may_have_more else None


@dataclass(frozen=True)
class _Sums:
    """Over a data set: of the losses of all target tokens, and of the mean losses of all examples that have any."""

    loss: float
    num_target_tokens: float
    example_loss: float
    num_examples: float

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.loss + other.loss,
            self.num_target_tokens + other.num_target_tokens,
            self.example_loss + other.example_loss,
            self.num_examples + other.num_examples,
        )

    @property
    def score(self) -> Score:
        return Score(self.loss / self.num_target_tokens, self.example_loss / self.num_examples)


def _told(name: str, sums: _Sums, base: _Sums | None, num_left_out: int) -> DataScore:
    score, base_score = sums.score, base.score if base else None
    return DataScore(name, round(sums.num_examples), round(sums.num_target_tokens), score, base_score, num_left_out)


def _scores(
    model: TrainModel, blocks: Sequence[BlockSet], cfg: RunConfig, report: Callable[[str], None]
) -> list[_Sums]:
    model.module.eval()
    try:
        return [_sums(model, one, cfg, report) for one in blocks]
    finally:
        model.reshard()  # without a backward pass FSDP leaves the root gathered


def _sums(model: TrainModel, blocks: BlockSet, cfg: RunConfig, report: Callable[[str], None]) -> _Sums:
    placement = model.placement
    at_once = cfg.evaluation.eval_batch_size or cfg.optimizer.micro_batch_size
    plan = BatchPlan(
        blocks,
        BlockOrder(len(blocks), seed=None),
        global_batch=len(blocks),
        micro_batch_size=at_once,
        rank=placement.rank,
        world_size=placement.world_size,
    )
    sums = torch.zeros(4, dtype=torch.float64, device=placement.device)
    pad = model.config.get_text_config().pad_token_id or 0
    told = time.monotonic()
    for todo in feed(plan, start=0, pad_blocks_to=None, pad_token_id=pad, device=placement.device):
        total = len(todo.plan.micro_batches)
        for number, batch in enumerate(todo.batches, 1):
            losses = model.label_losses(batch).double()
            ends = torch.tensor(batch.lengths, device=placement.device).cumsum(0)
            sums += _by_example(losses, torch.bucketize(batch.label_positions, ends, right=True), len(batch.lengths))
            if time.monotonic() - told >= _TOLD_EVERY_SECONDS:
                told = time.monotonic()
                report(f"{number:,} of {total:,} batches")
    if placement.world_size > 1:
        dist.all_reduce(sums)
    return _Sums(*sums.tolist())


def _by_example(losses: Tensor, examples: Tensor, num_examples: int) -> Tensor:
    """[sum of losses, number of losses, sum of the examples' means, number of examples that have a loss]."""
    of_example = torch.zeros(num_examples, dtype=losses.dtype, device=losses.device)
    counts = of_example.index_add(0, examples, torch.ones_like(losses))
    means = of_example.index_add(0, examples, losses) / counts.clamp(min=1)
    return torch.stack([losses.sum(), counts.sum(), means.sum(), (counts > 0).sum().to(losses.dtype)])
