"""What allranks.plan predicts of systems that others measured, row by row, with signed errors.

    python -m benchmarks.plan_rows            the table, with the constants as they are
    python -m benchmarks.plan_rows --fit      fit the constants on half of the rows first, and print them

plan_rows.toml holds the rows and their sources. Nothing is tuned for a row or a trainer: what a trainer does
differently (fused layers, precision of gradients, dropout) is said in `TRAINERS`, in the words of
`allranks.plan.workload`.
"""

import argparse
import math
import random
import statistics
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from allranks.plan.counted import num_parameters
from allranks.plan.error_bounds import TIME_ERROR
from allranks.plan.hardware import Device, Link, find_device, find_link
from allranks.plan.model_shape import shape_of
from allranks.plan.rates import FITTED, Constants
from allranks.plan.step_traffic import Layout
from allranks.plan.time import step_time
from allranks.plan.workload import ElementBytes, ModelShape, Workload
from allranks.plan.zero_gathers import gathers

ROWS = Path(__file__).with_suffix(".toml")
_QWEN_TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
_ZERO2, _ZERO3 = Layout("zero", stage=2), Layout("zero", stage=3)
_PLAIN = ElementBytes(compute=2, frozen=2, trained=4, gradient=4, master=0, state=8)
_ZERO = ElementBytes(compute=2, frozen=2, trained=2, gradient=2, master=4, state=8, packed=0.5 + 4 / 128)

# https://github.com/QwenLM/Qwen: finetune.py and its scripts; modeling_qwen.py beside the weights makes the loss of a
# shifted copy of all logits, in float32 under autocast (LoRA) and in the model's type under DeepSpeed (the others).
# PEFT of that time made adapters, and copies of the ends, in the type of the weights (tuners/lora/layer.py, 0.6), on
# Hugging Face's eager layers. PyTorch 2.0's AdamW is not fused, and makes two copies of a state in its step
# (torch/optim/adamw.py); DeepSpeed's is fused.
_QWEN: dict[str, Any] = {"stops_early": False, "recomputes": True, "shifts_logits": True}
_QWEN_LORA = {
    **_QWEN,
    "method": "lora",
    "lora_rank": 64,
    "lora_dropout": True,
    "foreach": True,
    "foreach_copies": 2,
    "element": ElementBytes(compute=2, frozen=2, trained=2, gradient=2, master=0, state=4),
}
_UNDER_DEEPSPEED = {"foreach": False, "upcasts_logits": False, "element": _ZERO}

# What is common to a trainer's rows. LLM Foundry and torchtitan with compile: fused layers.
TRAINERS: dict[str, dict[str, Any]] = {
    "qwen-lora": _QWEN_LORA,
    "qwen-lora-emb": {**_QWEN_LORA, "ends": True},
    "qwen-qlora": {**_QWEN_LORA, **_UNDER_DEEPSPEED, "method": "qlora", "packing": "gptq", "layout": _ZERO2},
    "qwen-full": {**_QWEN, **_UNDER_DEEPSPEED, "layout": _ZERO3},
    "qwen-lora-zero3": {**_QWEN_LORA, **_UNDER_DEEPSPEED, "layout": _ZERO3},
    "foundry": {"kind": "fsdp", "is_compiled": True},
    "foundry-pure": {"kind": "fsdp", "is_compiled": True, "element": replace(_PLAIN, gradient=2)},
    "titan": {"kind": "fsdp"},
    "titan-compiled": {"kind": "fsdp", "is_compiled": True},
    "fms": {"kind": "hsdp", "is_compiled": True, "element": replace(_PLAIN, gradient=2)},
    "automodel-lora": {
        "method": "lora",
        "lora_rank": 16,
        "lora_dropout": True,
        "is_compiled": True,
        "element": replace(_PLAIN, trained=2),
    },
}


@dataclass(frozen=True)
class Row:
    """`gigabytes`: of all GPUs together, where it was measured. `recomputed`: part of the layers. `is_later`: in
    neither half, for it came after them. `fits_gathers`: what ZeRO-3's collectives cost the host is fitted on it.
    `is_triton`: attention is the first FlashAttention, in Triton. `contradicted`: by what of its own source, in words.
    """

    group: str
    workload: Workload
    device: Device
    link: Link | None
    recomputed: float
    seconds: float
    gigabytes: float | None
    fits: bool
    source: str
    is_anchor: bool = False
    is_later: bool = False
    fits_gathers: bool = False
    is_triton: bool = False
    contradicted: str = ""

    def predicted(self, constants: Constants) -> float:
        """Between nothing and everything recomputed it is in proportion."""

        def of(recomputes: bool) -> float:
            trained = _TIMED.get(self.workload.name, self.workload.element.trained)
            element = replace(self.workload.element, trained=trained)
            workload = replace(self.workload, recomputes=recomputes, element=element)
            attention = constants.attention / (_in_triton(recomputes) if self.is_triton else 1.0)
            at_these = replace(constants, attention=attention)
            return step_time(workload, self.device, self.link, constants=at_these).total

        if self.recomputed in (0, 1):
            return of(bool(self.recomputed))
        return self.recomputed * of(True) + (1 - self.recomputed) * of(False)

    def error(self, constants: Constants) -> float:
        """Of the step's seconds, signed, as a part of the measured ones."""
        return self.predicted(constants) / self.seconds - 1


def rows() -> list[Row]:
    """All of them; of the anchors' tables, and of all other systems together, every second one is for the fit."""
    read = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    found = [row for group in read["groups"] for row in _of_group(group, read["models"])]
    others = [row for row in found if row.gigabytes is None and not row.is_later]
    chosen = {id(row) for row in others[::2]}
    return [replace(row, fits=True) if id(row) in chosen else row for row in found]


def _of_group(group: dict[str, Any], models: dict[str, dict[str, Any]]) -> Iterator[Row]:
    device = find_device(group["device"])
    changes = {"stops_early": group["stops_early"]} if "stops_early" in group else {}
    if "bandwidth" in group:
        device = replace(device, bandwidth=group["bandwidth"])
    link = find_link(group["link"]) if "link" in group else None
    for table in group["tables"]:
        shape = _shape(models[table["model"]])
        name = f"{table['model']} {table['trainer']}"
        for index, one in enumerate(table["measured"]):
            if len(one) == 3:
                tokens, seconds, gigabytes = one
                workload = _workload(shape, table["trainer"], table.get("gpus", 1), tokens, 1, 8)
                is_half = index % 2 == 0
                fits = bool(table.get("is_anchor")) and is_half
                yield Row(
                    *(name, workload, device, link, 1, seconds, gigabytes, fits, group["source"], "is_anchor" in table),
                    is_later=group.get("is_later", False),
                    fits_gathers=is_half and gathers(workload),
                    contradicted=table.get("contradicted", {}).get(str(tokens), ""),
                )
            else:
                gpus, tokens, size, accumulated, recomputed, rate = one
                workload = _workload(shape, table["trainer"], gpus, tokens, size, accumulated)
                workload = replace(workload, **changes)
                seconds = size * accumulated * tokens / rate
                yield Row(
                    *(name, workload, device, link, recomputed, seconds, None, False, group["source"]),
                    is_later=group.get("is_later", False),
                    is_triton=gpus < group.get("triton_below", 0),
                )


def _shape(config: dict[str, Any]) -> ModelShape:
    if config["model_type"] != "mpt":
        return shape_of(config)
    hidden, width, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tensors = {"transformer.wte.weight": (config["vocab_size"], hidden)}
    for layer in range(layers):
        at = f"transformer.blocks.{layer}."
        tensors |= {f"{at}norm_1.weight": (hidden,), f"{at}norm_2.weight": (hidden,)}
        tensors |= {f"{at}attn.Wqkv.weight": (3 * hidden, hidden), f"{at}attn.out_proj.weight": (hidden, hidden)}
        tensors |= {f"{at}ffn.up_proj.weight": (width, hidden), f"{at}ffn.down_proj.weight": (hidden, width)}
    heads = config["num_attention_heads"]
    return ModelShape(
        *(layers, hidden, width, heads, heads, hidden // heads, config["vocab_size"], tensors),
        is_tied=True,
        mlp_matrices=2,
    )


def _workload(shape: ModelShape, trainer: str, gpus: int, tokens: int, size: int, accumulated: int) -> Workload:
    given = dict(TRAINERS[trainer])
    method, kind, ends = given.pop("method", "full"), given.pop("kind", "ddp"), given.pop("ends", False)
    element, layout = given.pop("element", _PLAIN), given.pop("layout", None)
    rank, adapted, trained = given.get("lora_rank", 0), {}, num_parameters(shape)
    if rank:
        adapted = {
            name.removesuffix(".weight"): (one[0], one[1])
            for name, one in shape.tensors.items()
            if name.endswith(".weight") and len(one) == 2 and shape.vocabulary not in one and _is_target(name, shape)
        }
        trained = sum(rank * (rows + columns) for rows, columns in adapted.values())
        trained += 2 * shape.vocabulary * shape.hidden if ends else 0
    packed = sum(rows * columns for rows, columns in adapted.values()) if method == "qlora" else 0
    per_node = min(gpus, 8)
    layouts = {
        "ddp": Layout("ddp"),
        "fsdp": Layout("fsdp", gpus),
        "hsdp": Layout("fsdp", per_node),
    }
    layout = layout or layouts[kind]
    return Workload(
        name=trainer,
        shape=shape,
        method=method,
        layout=layout,
        num_ranks=gpus,
        ranks_per_node=per_node,
        num_trained=trained,
        micro_batch_size=size,
        num_micro_batches=accumulated,
        tokens=tokens,
        element=element,
        adapted=adapted,
        num_packed=packed,
        trains_embeddings=ends or method == "full",
        attention="flash",
        chunks_logits=False,
        **{"foreach": False, **_buckets(layout, shape.hidden), **given},
    )


def as_zero2(workload: Workload) -> Workload:
    """The same under Qwen's settings for stage 2."""
    return replace(workload, layout=_ZERO2, **_buckets(_ZERO2, workload.shape.hidden))


def _buckets(layout: Layout, hidden: int) -> dict[str, Any]:
    """Of Qwen's settings for DeepSpeed."""
    if layout == _ZERO2:  # ds_config_zero2.json: reduce_bucket_size 2e8, two such buffers with overlap_comm
        return {"bucket_elements": 400_000_000}
    if layout == _ZERO3:  # ds_config_zero3.json leaves these to transformers, which takes the width's square
        buckets = {"bucket_elements": hidden**2, "prefetch_elements": int(0.9 * hidden**2)}
        return {**buckets, "persistent_below": 10 * hidden}
    return {}


def _is_target(name: str, shape: ModelShape) -> bool:
    return shape.family != "qwen" or name.removesuffix(".weight").endswith(_QWEN_TARGETS)


_TIMED = {"qwen-lora": 4, "qwen-lora-emb": 4}
"""Bytes of an adapter's element under autocast, as the times are met: twice what memory tells."""
_TRITON_FORWARD, _TRITON_BACKWARD = 1.4, 2.0
"""By so much FlashAttention-2 is faster than FlashAttention in Triton: 1.3 to 1.5 times forward, about twice backward
(arXiv 2307.08691, section 4.1)."""


def _in_triton(recomputes: bool) -> float:
    """The same of a whole step: forward once or twice, and backward, which is 2.5 times as much."""
    forward, backward = 2.0 if recomputes else 1.0, 2.5
    return (forward * _TRITON_FORWARD + backward * _TRITON_BACKWARD) / (forward + backward)


_FREE = ("matmul", "memory", "kernel_seconds", "hook_seconds")


def fit(measured: Sequence[Row], rounds: int) -> tuple[Constants, float]:
    """The four constants, and the part of its peak that an H100 keeps up, with the least errors; found by changing one
    of them a little, again and again. Anchors and other systems weigh the same."""
    chance = random.Random(0)
    best, best_loss, step = {**asdict(FITTED), "h100": find_device("h100").matmul}, math.inf, 0.2
    for _ in range(rounds):
        tried = dict(best)
        if best_loss < math.inf:
            name = chance.choice([*_FREE, "h100"])
            tried[name] *= math.exp(chance.gauss(0, step))
        loss = _loss(measured, *_split(tried)) if max(tried[name] for name in ("matmul", "memory")) <= 1 else math.inf
        if loss < best_loss:
            best, best_loss = tried, loss
        step = max(0.02, step * 0.985)
    return _split(best)


def fit_gathers(measured: Sequence[Row], constants: Constants) -> Constants:
    """`gather_seconds`, with all else as it is: the least errors in the mean."""

    def tried(micros: int) -> Constants:
        return replace(constants, gather_seconds=micros * 1e-6)

    def loss(micros: int) -> float:
        return statistics.fmean(abs(math.log1p(row.error(tried(micros)))) for row in measured)

    return tried(min(range(0, 1500, 10), key=loss))


def _split(values: dict[str, float]) -> tuple[Constants, float]:
    return Constants(**{name: value for name, value in values.items() if name != "h100"}), values["h100"]


def _loss(measured: Sequence[Row], constants: Constants, h100: float) -> float:
    parts = ([row for row in measured if row.is_anchor is is_anchor] for is_anchor in (True, False))
    return sum(
        statistics.fmean(abs(math.log1p(on_h100(row, h100).error(constants))) for row in part) for part in parts if part
    )


def on_h100(row: Row, matmul: float) -> Row:
    """The row, with another figure of an H100 where it is of one."""
    return replace(row, device=replace(row.device, matmul=matmul)) if row.device.name == "h100-80gb" else row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the constants first, and print them")
    parser.add_argument("--rounds", type=int, default=300, help="of the fit")
    options = parser.parse_args()
    every, constants = rows(), FITTED
    if options.fit:
        constants, h100 = fit([row for row in every if row.fits], options.rounds)
        constants = fit_gathers([row for row in every if row.fits_gathers], constants)
        print(f"{constants}\nmatmul of an H100: {h100:.3f}\n")
        every = [on_h100(row, h100) for row in every]
    for line in table(every, constants):
        print(line)


def table(every: Sequence[Row], constants: Constants) -> Iterator[str]:
    """Markdown: each row with its signed error, then medians and the worst of each part."""
    yield "| row | GPUs | tokens | micro-batch | measured, s | predicted, s | error | tokens/s of a GPU, predicted |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in every:
        workload, predicted = row.workload, row.predicted(constants)
        of_gpu = workload.micro_batch_size * workload.num_micro_batches * workload.tokens / predicted
        mark = " (fitted)" if row.fits or row.fits_gathers else " (later)" if row.is_later else ""
        mark += " (contradicted)" if row.contradicted else ""
        yield (
            f"| {row.group}{mark} | {workload.num_ranks} | {workload.tokens} | "
            f"{workload.micro_batch_size} x {workload.num_micro_batches} | {row.seconds:.4g} | {predicted:.4g} | "
            f"{row.error(constants):+.1%} | {of_gpu:,.0f} |"
        )
    yield ""
    others = [row for row in every if row.gigabytes is None and not row.is_later]
    parts = {
        "Qwen's rows, the half that was fitted": [row for row in every if row.is_anchor and row.fits],
        "Qwen's rows, the other half": [row for row in every if row.is_anchor and not row.fits],
        "further rows of Qwen's on one GPU": [row for row in every if _is_further(row) and row.workload.num_ranks == 1],
        "ZeRO-3 on two and four GPUs, the half that was fitted": [row for row in every if row.fits_gathers],
        "ZeRO-3 on two and four GPUs, the other half": [
            row for row in every if gathers(row.workload) and not row.fits_gathers
        ],
        "other systems, the half that was fitted": [row for row in others if row.fits],
        "other systems, the other half": [row for row in others if not row.fits],
        "other systems, rows that were added after the fit": [
            row for row in every if row.is_later and row.gigabytes is None
        ],
        "an earlier revision of Qwen's rows, added after the fit": [
            row for row in every if row.is_later and row.gigabytes is not None
        ],
    }
    for name, part in parts.items():
        errors = [row.error(constants) for row in part]
        sizes = [abs(one) for one in errors]
        median, signed, worst = statistics.median(sizes), statistics.median(errors), max(errors, key=abs)
        yield f"- {name}: {len(part)} rows, median {median:.1%} (signed {signed:+.1%}), worst {worst:+.1%}"
    far = [row for row in every if abs(row.error(constants)) > TIME_ERROR]
    yield f"- of all {len(every)} rows {len(far)} more than {TIME_ERROR:.0%} off"
    for row in far:
        why = f"; its own source contradicts it: {row.contradicted}" if row.contradicted else ""
        yield f"    - {row.group}, {row.workload.tokens} tokens: {row.error(constants):+.1%}{why}"


def _is_further(row: Row) -> bool:
    return row.gigabytes is not None and not row.is_anchor and not row.is_later


if __name__ == "__main__":
    main()
