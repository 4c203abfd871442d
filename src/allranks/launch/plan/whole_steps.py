"""Whole steps of a small model on this machine's CPUs, by the engine itself: full fine-tuning, and LoRA.

What a step is made of takes longer within one than by itself: caches hold what came before, memory is scattered, Python
runs between. How much longer is the machine's own, so it is measured; the runs keep it where every run does, and later
plans find it there (`plan.kept_calibration`).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allranks.cluster.descendants import ends_what_it_starts
from allranks.cluster.loopback import free_port
from allranks.errors import AllranksError
from allranks.launch.node.starters.memory import allocator_variables
from allranks.parent import die_with_parent
from allranks.plan.model_shape import shape_of

_MODEL: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
"""17 million parameters: large enough for no cache, and a second a step on a slow core."""
_ROW = 512
_DOCUMENT = 256
"""Two fill a row, so that all ranks have as much to do in every step."""
_STEPS = 32
"""The first third of them takes longer, until memory is where it stays: the median is none of these."""
_KEYS: Mapping[str, Any] = {
    "sequence_len": _ROW,
    "sample_packing": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_steps": _STEPS,
    "learning_rate": 1e-4,
    "optimizer": "adamw_torch_fused",
    "max_grad_norm": 1.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
_METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "LoRA": {"adapter": "lora", "lora_r": 16, "lora_alpha": 16, "lora_target_linear": True},
}
_LONGEST_SECONDS = 600.0
_POLL_SECONDS = 0.1


def measure_whole_steps(num_ranks: int, num_threads: int) -> None:
    """Train on `num_ranks` ranks of so many threads; takes a minute. Raises AllranksError where that fails."""
    with tempfile.TemporaryDirectory(prefix="allranks-calibrate-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _write_model(folder / "model")
        _write_rows(folder / "rows.jsonl", number=_STEPS * num_ranks * _ROW // _DOCUMENT)
        for method, keys in _METHODS.items():
            config = folder / f"{method}.yaml"  # JSON is YAML
            config.write_text(json.dumps({**_KEYS, **keys, **_places(folder, method)}))
            _train(config, num_ranks, num_threads, folder / f"{method}.log")


def _places(folder: Path, method: str) -> dict[str, Any]:
    return {
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(folder / "rows.jsonl"), "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / method),
    }


def _write_model(folder: Path) -> None:
    import numpy
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_MODEL))
    random_numbers = numpy.random.default_rng(0)
    weights = {
        name: random_numbers.standard_normal(size, dtype=numpy.float32) * numpy.float32(0.02)
        for name, size in shape_of(_MODEL).tensors.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # Nothing is tokenized here, but a model has a tokenizer beside it.
    words = {"<pad>": 0, "<unk>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, _MODEL["vocab_size"])}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def _write_rows(file: Path, *, number: int) -> None:
    generator = random.Random(0)
    with file.open("w") as rows:
        for _ in range(number):
            tokens = [generator.randrange(3, _MODEL["vocab_size"]) for _ in range(_DOCUMENT)]
            record = {"input_ids": tokens, "attention_mask": [1] * _DOCUMENT, "labels": tokens}
            rows.write(json.dumps(record) + "\n")


def _train(config: Path, num_ranks: int, num_threads: int, log: Path) -> None:
    """As a launcher would start the ranks; their ends are awaited, and of one that fails the others are not left."""
    env = {**os.environ, **allocator_variables(0), "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    env |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    argv = [sys.executable, "-m", "allranks.train", str(config)]
    env["TMPDIR"] = str(log.parent)  # what is left there goes with all else
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("wb") as output, ends_what_it_starts():
            for rank in range(num_ranks):
                own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(
                    subprocess.Popen(
                        argv,
                        env=own,
                        cwd=log.parent,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        preexec_fn=die_with_parent,
                    )
                )
            in_time = _await_all(ranks)
    finally:
        for one in ranks:
            one.kill()  # where the system does not list what a process has started (macOS)
            one.wait()
    if any(one.returncode for one in ranks):
        why = "" if in_time else f" within {_LONGEST_SECONDS:.0f} s"
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        head = f"whole steps of this node could not be measured{why}; the end of what was said:"
        raise AllranksError("\n  ".join([head, *said]))


def _await_all(ranks: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Whether all have ended, or one has failed, before the time is over."""
    end = time.monotonic() + _LONGEST_SECONDS
    while any(one.poll() is None for one in ranks) and not any(one.returncode for one in ranks):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)
    return True
