"""`allranks qwen`: the interface of Qwen's fine-tuning scripts."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.help import new_app
from allranks.cli.train_words import TrainWordsCommand, read_as_train, train_words
from allranks.errors import UsageError

app = new_app()

_WITHOUT_DEEPSPEED = {
    "full": "finetune_ds.sh shards by DeepSpeed ZeRO-3; here FSDP2 does, with the same losses",
    "lora": "finetune_lora_ds.sh runs DeepSpeed ZeRO-2; here it is DDP, with the same losses",
    "qlora": "finetune_qlora_ds.sh runs DeepSpeed ZeRO-2; here it is DDP, with the same losses",
}


@app.command(
    cls=TrainWordsCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 allranks qwen lora -m Qwen/Qwen3-8B -d data.json",
)
def qwen(
    ctx: typer.Context,
    method: Annotated[str, typer.Argument(metavar="full|lora|qlora", help="What is trained.", show_default=False)],
    model: Annotated[
        str, typer.Option("-m", "--model", envvar="MODEL", help="Folder or Hub id of the model.", show_default=False)
    ],
    data: Annotated[
        str, typer.Option("-d", "--data", envvar="DATA", help="JSON list of conversations.", show_default=False)
    ],
    deepspeed: Annotated[
        str | None, typer.Option(metavar="FILE|none", help="A DeepSpeed config; none: FSDP2 (full) or DDP.")
    ] = None,
) -> None:
    """Fine-tune as finetune_ds.sh, finetune_lora_ds.sh and finetune_qlora_ds.sh do, with their defaults.

    Reads NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (6001) and GPUS_PER_NODE, as they do. Options of `allranks train`,
    any config key and finetune.py's own names (--model_max_length 1024) change single values.
    """
    from allranks import durable
    from allranks.cli.config_keys import given
    from allranks.cli.launch_options import launch_options, node_options
    from allranks.config.foreign.finetune import in_our_words
    from allranks.config.foreign.qwen import (
        METHODS,
        modules_trained_whole,
        qwen_config,
        refuse_quantized,
        refuse_with_zero3,
        why_trained_whole,
    )
    from allranks.config.load import resolve_mapping
    from allranks.config.overrides import parse_overrides
    from allranks.config.schema import write_schema
    from allranks.disk import refuse_unwritable
    from allranks.launch.spec.qwen_variables import port_words
    from allranks.observe import say

    if method not in METHODS:
        raise UsageError(f"allranks qwen {method}: expected {', '.join(METHODS)}")
    model = str(Path(model).expanduser())  # of MODEL; in an option the shell does it
    refuse_quantized(model)
    words, notes = in_our_words(train_words(ctx))
    if deepspeed not in (None, "none"):
        words = ["--deepspeed", deepspeed, *words]
    context = read_as_train(["qwen.yaml", *words])
    words = [*port_words(launch_options(context), node_options(context), os.environ), *words]
    overrides = parse_overrides(given(context).config)
    by_zero = deepspeed is None and importlib.util.find_spec("deepspeed") is not None
    flat = qwen_config(method, model, data, overrides.keys(), deepspeed=by_zero)
    # Before anything is written; the file says the same.
    cfg = resolve_mapping(
        flat, f"allranks qwen {method}", overrides, ignore_unsupported=bool(context.params["ignore_unsupported"])
    )
    refuse_with_zero3(model, cfg)
    if not cfg.deepspeed.stage and not any(key.startswith(("fsdp", "dp_", "deepspeed")) for key in overrides):
        asked = "" if deepspeed == "none" else " (DeepSpeed is not installed here)"
        notes.append(_WITHOUT_DEEPSPEED[method] + asked)
    if (whole := cfg.adapter.lora_modules_to_save) and whole == modules_trained_whole(model):
        notes.append(why_trained_whole(model, whole))
    for note in notes:
        say(f"note: {note}", file=sys.stderr)
    path = Path(cfg.checkpoint.output_dir) / "qwen.yaml"
    refuse_unwritable(path.parent)
    durable.write(path, _as_yaml(method, flat))
    write_schema(path.parent)
    with read_as_train([str(path), *words]) as started:
        started.command.invoke(started)


def _as_yaml(method: str, flat: dict) -> str:
    import yaml

    from allranks.config.schema import EDITOR_LINE

    what = f"# What `allranks qwen {method}` stands for. `allranks config show` on this file shows every default too."
    head = f"{EDITOR_LINE}\n{what}\n"
    return head + yaml.safe_dump(flat, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("qwen")
