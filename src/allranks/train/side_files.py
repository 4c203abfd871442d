"""The small files beside the weights: config, generation config, tokenizer, adapter config.

They are made before the first step, once, and only copied into each checkpoint: whatever is wrong with them is found
while nothing is lost, and no save can fail on them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from allranks.config import RunConfig
from allranks.data import load_tokenizer
from allranks.data.stops import trained_stops
from allranks.disk import disk_told, refuse_unwritable, told_to_user
from allranks.errors import AllranksError, ConfigError
from allranks.model.generation import generation_config
from allranks.model.source import model_folder
from allranks.model.train_model import TrainModel
from allranks.observe import RunDir
from allranks.train.save_failure import of_ranks
from allranks.train.storage import Storage, from_all


@dataclass(frozen=True)
class SideFiles:
    """The contents of files by their names below a checkpoint's folder for them. Rank 0 alone has any."""

    contents: dict[str, bytes]

    def write(self, folder: Path) -> None:
        """Write all of them below `folder`, which is there."""
        for name, content in self.contents.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def make_side_files(
    cfg: RunConfig, model: TrainModel, storage: Storage, run_dir: RunDir, warn: Callable[[str], None]
) -> SideFiles:
    """Make them on rank 0, and prove on every disk that checkpoints can be written there. Call it on all ranks.

    Raises:
        ConfigError: the model's config, tokenizer or adapter cannot be written so that it can be read again.
        UsageError: the folder of the checkpoints cannot be written.
    """
    made, refused = SideFiles({}), None
    try:
        if storage.leads:
            refuse_unwritable(run_dir.checkpoints)
        if storage.number == 0 and storage.leads:
            made = SideFiles(_contents(cfg, model, run_dir.path, warn))
    except AllranksError as error:
        refused = error
    if failures := {rank: told for rank, told in enumerate(from_all(refused)) if told}:
        raise failures[0] if 0 in failures else of_ranks(failures)
    return made


def _contents(cfg: RunConfig, model: TrainModel, place: Path, warn: Callable[[str], None]) -> dict[str, bytes]:
    base = model_folder(cfg)
    tokenizer = load_tokenizer(cfg)
    stops = trained_stops(cfg, tokenizer)
    for line in stops.warnings:
        warn(line)
    ids = tokenizer.convert_tokens_to_ids(stops.tokens)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    generation, changes = generation_config(base, model.config, stops=ids, pad=tokenizer.pad_token_id)
    config = copy.deepcopy(model.config)
    known = config.get_text_config().eos_token_id
    if not {*ids} <= {*(known if isinstance(known, list) else [known])}:
        config.get_text_config().eos_token_id = config.eos_token_id = generation.eos_token_id
        if stops.only and stops.tokens and not _ends_texts(tokenizer):
            # Neither the model nor its tokenizer knows this end, and training taught no other.
            tokenizer.eos_token = stops.tokens[0]
    for line in changes:
        warn(line)
    with (
        disk_told("the files beside the weights are not made", place),
        tempfile.TemporaryDirectory(dir=place, prefix=".side-files-") as name,
    ):
        folder = Path(name)
        _written(f"config.json of {base}", lambda: config.save_pretrained(folder))
        _written(
            f"config.json of {base}",
            lambda: AutoConfig.from_pretrained(folder, trust_remote_code=cfg.model.trust_remote_code),
        )
        _written(f"generation_config.json of {base}", lambda: generation.save_pretrained(folder))
        _written(f"the tokenizer of {cfg.model.tokenizer_config or base}", lambda: tokenizer.save_pretrained(folder))
        if (adapter := model.peft_config) is not None:
            _written("adapter_config.json", lambda: adapter.save_pretrained(str(folder)))
        return {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }


def _ends_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its end behind texts by itself: with another end they would be other tokens."""
    return tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id


def _written(what: str, write: Callable[[], object]) -> None:
    try:
        write()
    except Exception as error:  # of transformers, tokenizers or PEFT: many kinds
        if told_to_user(error, f"writing {what}"):
            raise  # it is the disk
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ConfigError(
            f"base_model: {what} cannot be written so that it can be read again, and every checkpoint needs it: "
            f"{reason}. Mend that file, then start again; nothing was trained yet"
        ) from error
