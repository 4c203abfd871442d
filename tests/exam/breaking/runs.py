"""The runs of TRL and axolotl that are broken on purpose: what is done to each, and what the doctor should say."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Broken:
    """A run, what is done to it, and what the doctor should say."""

    name: str
    cause: str
    rank: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    keys: dict[str, object] = field(default_factory=dict)
    """Of axolotl's config."""
    launch: tuple[str, ...] | None = None
    """torchrun's words, where they are not `--nproc-per-node 2` on a free port."""
    prepare: Callable[[Path], None] = lambda folder: None


def cut_weights(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def wrong_shape(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "other")
    config = json.loads((folder / "other" / "config.json").read_text())
    (folder / "other" / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def no_weights(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "none")
    (folder / "none" / "model.safetensors").unlink()


def bad_lines(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "bad.jsonl").write_text("\n".join([*lines[:3], lines[3][:20], *lines[4:]]) + "\n")


def without_text(folder: Path) -> None:
    (folder / "columns.jsonl").write_text('{"words": "w3 w4"}\n' * 20)


def chats(folder: Path) -> None:
    messages = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    (folder / "chats.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 20)


def small_disk(folder: Path) -> None:
    (folder / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder / "small")], check=True)


def bad_checkpoint(folder: Path) -> None:
    checkpoint = folder / "checkpoint-2"
    shutil.copytree(folder / "model", checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"PK\x03\x04" + bytes(90))
    (checkpoint / "scheduler.pt").write_bytes(b"PK\x03\x04" + bytes(90))
    state = {"global_step": 2, "max_steps": 6, "num_train_epochs": 1, "train_batch_size": 2, "stateful_callbacks": {}}
    state |= {"logging_steps": 1, "eval_steps": 1, "save_steps": 2, "epoch": 0.1}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


TWO_NODES = ("--nnodes", "2", "--nproc-per-node", "1")
EVERYWHERE = (
    Broken("healthy", "unknown"),
    Broken("exception", "exception", 1, {"FAULT": "exception"}),
    Broken("killed", "rank-sigkill", 1, {"FAULT": "killed"}),
    Broken("segfault", "segfault", 1, {"FAULT": "segfault"}),
    Broken("host-memory", "host-memory-error", 1, {"FAULT": "host-memory"}),
    # Nothing ends it but whoever waits: their time-outs are half an hour long here, and a log says nothing until then.
    Broken("late", "unknown", None, {"FAULT": "late"}),
    Broken("port-taken", "port-in-use", None, launch=("--nproc-per-node", "2", "--master-port", "{taken}")),
    Broken(
        "unresolved", "master-name-unresolved", None,
        launch=(*TWO_NODES, "--node-rank", "1", "--master-addr", "no-such-host", "--master-port", "{free}",
                "--rdzv-conf", "timeout=20"),
    ),
    Broken(
        "no-master", "master-is-loopback", None,
        launch=(*TWO_NODES, "--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", "{free}",
                "--rdzv-conf", "timeout=20"),
    ),
    Broken(
        "alone", "rendezvous-timeout", None,
        launch=(*TWO_NODES, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:{free}", "--rdzv-conf",
                "join_timeout=10"),
    ),
)  # fmt: skip
TRL = (
    *EVERYWHERE,
    Broken("other-collective", "unknown", None, {"FAULT": "other-collective"}),
    Broken("no-data", "dataset-not-found", None, {"DATA": "nowhere.jsonl"}),
    Broken("bad-data", "dataset-parse-error", None, {"DATA": "bad.jsonl"}, prepare=bad_lines),
    Broken("no-column", "dataset-column-missing", None, {"DATA": "columns.jsonl"}, prepare=without_text),
    Broken("no-template", "tokenizer-chat-template", None, {"DATA": "chats.jsonl"}, prepare=chats),
    Broken("cut-weights", "safetensors-corrupt", None, {"MODEL": "cut"}, prepare=cut_weights),
    Broken("no-weights", "model-files-missing", None, {"MODEL": "none"}, prepare=no_weights),
    Broken("wrong-shape", "model-shape-mismatch", None, {"MODEL": "other"}, prepare=wrong_shape),
    Broken("no-model", "hub-not-found", None, {"MODEL": "nowhere"}),
    Broken("unused", "unused-parameters", None, {"FAULT": "unused"}),
    Broken("tokens", "index-out-of-range", None, {"FAULT": "tokens"}),
    Broken("bf16", "cuda-not-available", None, {"FAULT": "bf16"}),
    Broken("flash", "attention-kernel-missing", None, {"ATTENTION": "flash_attention_2"}),
    Broken("full-disk", "disk-full", None, {"FAULT": "full-disk", "OUTPUT": "small"}, prepare=small_disk),
    Broken("bad-checkpoint", "checkpoint-corrupt", None, {"RESUME": "checkpoint-2"}, prepare=bad_checkpoint),
    Broken("no-checkpoint", "checkpoint-missing", None, {"RESUME": "nowhere-2"}),
)
AXOLOTL = (
    *EVERYWHERE,
    Broken("wrong-value", "launcher-config-error", None, keys={"micro_batch_size": "many"}),
    Broken("contradiction", "launcher-config-error", None, keys={"load_in_4bit": True, "load_in_8bit": True}),
    Broken("no-data", "dataset-not-found", None, keys={"datasets": [{"path": "nowhere.jsonl", "type": "completion"}]}),
    Broken("no-column", "dataset-column-missing", None, keys={"datasets": [
        {"path": "columns.jsonl", "ds_type": "json", "type": "completion"}]}, prepare=without_text),
    Broken("no-template", "tokenizer-chat-template", None, keys={"datasets": [
        {"path": "chats.jsonl", "ds_type": "json", "type": "chat_template", "chat_template": "tokenizer_default"}]},
        prepare=chats),
    Broken("cut-weights", "safetensors-corrupt", None, keys={"base_model": "cut"}, prepare=cut_weights),
    Broken("no-model", "hub-offline-or-unreachable", None, keys={"base_model": "nowhere/nothing"}),
    Broken("bf16", "cuda-not-available", None, keys={"bf16": True}),
    Broken("flash", "attention-kernel-missing", None, keys={"attn_implementation": "flash_attention_2"}),
    Broken("adapter", "lora-target-missing", None,
           keys={"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["nowhere"]}),
    Broken("full-disk", "disk-full", None, keys={"output_dir": "small", "save_strategy": "steps", "save_steps": 2},
           prepare=small_disk),
    Broken("scheduler", "launcher-config-error", None, keys={"lr_scheduler": "sideways"}),
)  # fmt: skip
TRAINERS = {"trl": TRL, "axolotl": AXOLOTL}
