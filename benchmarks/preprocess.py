"""Preparing conversations: seconds from the command to the end, and peak memory, beside TRL.

    python -m benchmarks.preprocess [--conversations 60000] [--rounds 3] [--against SRC] [--no-report]

allranks renders, masks, tokenizes and packs; TRL's SFTTrainer does the same without masks. `--against` names the
`src` folder of another state of allranks, which takes turns with this one. Each runs in a fresh process with empty
caches; its memory is that of all its processes together, sampled ten times a second.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import psutil

from benchmarks import report

SEQUENCE_LEN = 2048
_TRL = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
folder, length, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder + "/model")
model = AutoModelForCausalLM.from_pretrained(folder + "/model")
data = load_dataset("json", data_files=folder + "/conversations.jsonl", split="train")
settings = SFTConfig(output_dir=folder + "/trl", packing=True, max_length=length, dataset_num_proc=processes,
                     use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
print(len(trainer.train_dataset))
"""
_OURS = "import sys; sys.path.insert(0, sys.argv.pop(1)); from allranks.cli.main import main; main()"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=60_000, help="of four messages each (default 60000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each runs (default 3)")
    parser.add_argument("--against", help="the src folder of another state of allranks")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)

    here = str(Path(__file__).resolve().parent.parent / "src")
    names = {"allranks": "allranks", **({"before": "allranks, the other state"} if options.against else {})}
    if find_spec("trl"):
        names["trl"] = "TRL, without masks"
    rounds = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        num_bytes = _write(Path(folder), options.conversations)
        print(f"{options.conversations} conversations, {num_bytes / 2**20:.0f} MiB", flush=True)
        commands = {
            "allranks": [sys.executable, "-c", _OURS, here, "preprocess", "config.yaml"],
            "before": [sys.executable, "-c", _OURS, options.against or "", "preprocess", "config.yaml"],
            "trl": [sys.executable, "-c", _TRL, folder, str(SEQUENCE_LEN), str(len(os.sched_getaffinity(0)))],
        }
        for number in range(options.rounds):
            first, order = number % len(names), list(names)
            measured = {}
            for key in order[first:] + order[:first]:
                with tempfile.TemporaryDirectory(prefix=f"{key}-", dir=folder) as scratch:
                    command = [*commands[key], *([] if key == "trl" else ["--dataset-prepared-path", scratch])]
                    measured[key] = _measure(command, Path(folder), Path(scratch))
                seconds, peak, load = measured[key]
                print(
                    f"round {number + 1}  {names[key]:28}{seconds:8.1f} s{peak / 2**20:8.0f} MiB  load {load:.1f}",
                    flush=True,
                )
            rounds.append(measured)
    lines = _table(rounds, names)
    print("\n" + "\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(options, num_bytes, rounds, names, lines)}")


def _measure(command: list[str], folder: Path, scratch: Path) -> tuple[float, int, float]:
    """Seconds, peak bytes of all its processes, load of the machine before."""
    load = os.getloadavg()[0]
    env = {**os.environ, "HF_DATASETS_CACHE": str(scratch / "cache"), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with (folder / "output.log").open("wb") as log:
        process = psutil.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(0.1)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"error: exit code {process.returncode}\n{(folder / 'output.log').read_text()[-3000:]}")
    return seconds, peak, load


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.Error:  # one of them has just ended
        pass
    return total


def _table(rounds: list[dict], names: dict[str, str]) -> list[str]:
    rows = []
    for key, name in names.items():
        seconds = report.spread([one[key][0] for one in rounds], ".1f")
        ratio = report.spread([one[key][0] / one["allranks"][0] for one in rounds])
        rows.append([name, seconds, ratio, f"{statistics.median(one[key][1] for one in rounds) / 2**20:.0f}"])
    return report.table(["", "seconds", "x allranks, same round", "peak memory, MiB"], rows)


def _write_report(
    options: argparse.Namespace, num_bytes: int, rounds: list[dict], names: dict[str, str], lines: list[str]
) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    loads = [one[key][2] for one in rounds for key in names]
    text = [
        f"# Preparing {options.conversations} conversations on {hardware}, {today}",
        "",
        f"{num_bytes / 2**20:.0f} MiB, four messages each, chatml, packed into {SEQUENCE_LEN} tokens. {len(rounds)} "
        "rounds, taking turns; from the command to its end, in fresh processes with empty caches. Cells are "
        "`median (min to max)`.",
        "",
        f"Load average of the machine before the runs: {min(loads):.1f} to {max(loads):.1f} (0: nothing else ran).",
        "",
        *lines,
        *report.settings("Machine", facts),
        "Command: `python -m benchmarks.preprocess`",
        "",
    ]
    return report.saved("preprocess", hardware, text)


def _write(folder: Path, count: int) -> int:
    """`conversations.jsonl`, `config.yaml` and `model/`: a tiny model with a byte-level tokenizer of 32,000 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    generator = random.Random(7)
    syllables = [a + b + c for a in [*"bcdfghklmnprstvw", "st", "tr", "pl"] for b in "aeiou" for c in ["", *"nrstl"]]
    words = sorted(
        {"".join(generator.choices(syllables, k=generator.choice((1, 2, 2, 3, 3, 4)))) for _ in range(20_000)}
    )
    generator.shuffle(words)
    weights = list(accumulate(1 / (rank + 5) for rank in range(len(words))))  # as words of a language are: Zipf's law

    def text(length: int) -> str:
        return " ".join(generator.choices(words, cum_weights=weights, k=length)).capitalize() + "."

    data = folder / "conversations.jsonl"
    with data.open("w") as file:
        for _ in range(count):
            turns = [text(generator.randint(*((5, 20), (8, 30))[i % 2])) for i in range(4)]
            roles = ("user", "assistant", "user", "assistant")
            messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
            file.write(json.dumps({"messages": messages}) + "\n")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((text(60) for _ in range(20_000)), trainer)
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    fast.save_pretrained(folder / "model")
    config = AutoConfig.for_model(
        "llama", vocab_size=32_000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    (folder / "config.yaml").write_text(
        "base_model: model\nlearning_rate: 1e-4\nsample_packing: true\ndatasets:\n"
        f"  - {{path: conversations.jsonl, type: chat_template}}\nsequence_len: {SEQUENCE_LEN}\n"
    )
    return data.stat().st_size


if __name__ == "__main__":
    main()
