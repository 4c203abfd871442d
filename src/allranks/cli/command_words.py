"""Which command was probably meant by a word that is none: a misspelling, or another tool's word."""

import difflib
from collections.abc import Collection

WORDS = {
    **dict.fromkeys(
        ("sft", "finetune", "fine-tune", "ft", "fit", "pt", "pretrain", "tune", "start", "resume", "torchrun"), "train"
    ),
    **dict.fromkeys(("inference", "infer", "ask", "webchat", "webui", "web-ui", "app", "vllm-serve", "serve"), "chat"),
    **dict.fromkeys(("predict", "sample", "complete", "completion"), "generate"),
    **dict.fromkeys(("eval", "lm-eval", "evaluation", "test", "validate", "perplexity"), "evaluate"),
    **dict.fromkeys(("merge", "merge-adapter", "merge-model", "save", "convert", "push", "upload"), "export"),
    **dict.fromkeys(("prepare", "tokenize", "prep", "data", "dataset", "preprocessing"), "preprocess"),
    **dict.fromkeys(("launch", "accelerate", "exec"), "run"),
    **dict.fromkeys(("sbatch", "srun", "qsub", "slurm", "pbs", "batch"), "submit"),
    **dict.fromkeys(("new", "create", "quickstart", "setup"), "init"),
    **dict.fromkeys(("show", "schema", "validate-config", "import", "config-show"), "config"),
    **dict.fromkeys(("example", "examples", "fetch", "try"), "demo"),
}
"""Another tool's word (Axolotl's, LLaMA-Factory's, TRL's, ms-swift's), or an everyday one -> the command."""

# A command that a version may not have -> what does nearest to the same.
_INSTEAD = {"chat": "generate", "generate": "chat", "init": "demo"}


def meant_command(word: str, commands: Collection[str]) -> str | None:
    """The command that was probably meant, out of `commands`."""
    plain = word.lower().replace("_", "-").lstrip("-")
    if plain in commands:
        return plain
    if plain not in WORDS:
        close = difflib.get_close_matches(plain, [*commands, *WORDS], n=1, cutoff=0.6)
        plain = close[0] if close else ""
    found = WORDS.get(plain, plain)
    if found not in commands:
        found = _INSTEAD.get(found, "")
    return found if found in commands else None
