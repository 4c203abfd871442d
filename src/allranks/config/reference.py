"""The page docs/config.md, made from the config's models (`python -m allranks.config.reference`)."""

from pydantic_core import PydanticUndefined

from allranks.config.explain import allowed, as_yaml
from allranks.config.run import SECTIONS
from allranks.config.schema import EDITOR_LINE, NESTED, old_keys
from allranks.config.sections.section import Section, key_help
from allranks.config.spellings import RENAMED, VALUES
from allranks.config.unsupported import LATER, NO_EFFECT, OUT_OF_SCOPE
from allranks.config.unsupported_values import FSDP1, SAME_RESULT

INTRODUCTION = """\
# The config

One YAML file with flat keys, named as in Axolotl. This page is made from the code, by
`python -m allranks.config.reference > docs/config.md`.

- `allranks config show CONFIG` prints the config with every default filled in.
- Editors complete keys and mark mistakes once `allranks config schema > allranks.schema.json` stands beside the config
  and its first line is `EDITOR_LINE`.
- Any key is an option of `allranks train` and `allranks config show`: `--learning-rate 1e-4`, `--sample-packing`,
  `--no-sample-packing`, `--fsdp-config.offload-params true`, `--datasets.0.path other.jsonl`. Options win over the
  file; `--key null` takes a key out of it. `-` and `_` are the same.
- An empty value (`key:`) is the same as no such line: the default holds.
- Types are strict: `"512"` in quotes is text, not a number. `1e-5` is a number.
- Environment variables are not expanded, and secrets are refused: set HF_TOKEN and the like in the environment.
- Unknown keys, keys given twice and keys that exclude each other are errors that name file and line.
"""


TASKS = {
    "Choose the model and its tokenizer": "model",
    "Say what the data is, how it is read, and what of it is trained": "data",
    "Train an adapter, or over quantized weights": "adapter",
    "Choose the number format (bfloat16, float16, float32)": "precision",
    "Spread the model over GPUs and nodes, and save memory": "parallel",
    "Use DeepSpeed ZeRO": "deepspeed",
    "Choose how the loss is made, and kernels of other libraries": "kernels",
    "Steer NCCL and InfiniBand": "network",
    "Start without predicting the memory of a rank": "plan",
    "Accept what the checks before a run find, or be stricter": "preflight",
    "Set the batch, the number of steps, the optimizer and the learning rate": "optimizer",
    "Save, keep and resume": "checkpoint",
    "Watch it, and end a hang": "live",
    "Evaluate, keep the best, stop early": "evaluation",
    "Follow a run: logs, profiles, TensorBoard, W&B, MLflow, Trackio": "tracking",
    "Start with Ray": "launch",
}
"""What a reader wants to do -> the section of its keys."""


def _by_task() -> str:
    others = {
        "Find an old key of Axolotl's": "Old spellings",
        "Find why a key is refused": "Not supported yet",
        "Find why a key has no effect": "Without effect",
    }
    rows = [f"| {task} | [{head}](#{head.lower().replace(' ', '-')}) |" for task, head in {**TASKS, **others}.items()]
    return "| to | see |\n|---|---|\n" + "\n".join(rows)


def markdown() -> str:
    """The reference page of every key."""
    parts = [INTRODUCTION.replace("EDITOR_LINE", EDITOR_LINE), _by_task()]
    for name, section in SECTIONS.items():
        parts.append(f"## {name}\n\n{_first_line(section)}\n\n{_table(section)}")
        fields = section.model_fields
        for path, nested in NESTED.items():
            if path.partition(".")[0] in fields:
                parts.append(f"### {path}\n\n{_first_line(nested)}\n\n{_table(nested)}")
    old = [f"| `{old}` | {new} |" for old, new in old_keys().items()]
    old += [f"| `{old}` | `{new}` |".replace("*", "N") for old, new in RENAMED.items() if "." in old]
    old += [f"| `{key}: {old}` | `{key}: {new}` |" for key, values in VALUES.items() for old, new in values.items()]
    parts.append(
        "## Old spellings\n\nUnderstood, and shown under their present name.\n\n| old | now |\n|---|---|\n"
        + "\n".join(old)
    )
    parts.append(
        "## Not supported yet\n\nErrors when switched on; `--ignore-unsupported` goes on without them. "
        "A value that switches nothing on (`false`, empty) is fine.\n\n" + _meanings(LATER)
    )
    parts.append("## Settings of FSDP1\n\nErrors when switched on.\n\n" + _meanings(FSDP1))
    parts.append("## Out of scope\n\nErrors when switched on.\n\n" + _meanings(OUT_OF_SCOPE))
    same = {
        f"{key}: {as_yaml(value) if isinstance(value, bool) else value}": why
        for key, values in SAME_RESULT.items()
        for value, why in values.items()
    }
    parts.append("## Without effect\n\nAccepted with a warning.\n\n" + _meanings({**NO_EFFECT, **same}))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _table(section: type[Section]) -> str:
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        if key in LATER:
            continue
        default = field.get_default()
        if default is PydanticUndefined:
            text = "required"
        else:
            text = "" if default is None else f"`{as_yaml(default) if not isinstance(default, str) else default}`"
        meaning = key_help(section)[key].replace("|", r"\|")
        rows.append(f"| `{key}` | {allowed(field)} | {text} | {meaning} |")
    return "\n".join(rows)


def _meanings(table: dict[str, str]) -> str:
    rows = [f"| `{key.replace('datasets.*', 'datasets.N')}` | {text} |" for key, text in table.items()]
    return "| key | |\n|---|---|\n" + "\n".join(rows)


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    print(markdown(), end="")
