"""Make the prepared data set of a config, or open it if it was made before."""

import hashlib
from dataclasses import asdict, dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from allranks.data.added_tokens import added_tokens
from allranks.data.blocks import BlockSet, arrange
from allranks.data.fingerprint import fingerprint, split_seed
from allranks.data.show import source_line
from allranks.data.sources import locate, read
from allranks.data.store import Prepared, Report, building, folder_of, lock, open_prepared, write_manifest
from allranks.errors import DataError

_SHOWN_PROBLEMS = 5
_MERGE_SEED = 0  # mixing the data sets before packing; fixed, so that another `seed` needs no new preparation


def prepare(cfg: Any, *, report: Report | None = None) -> Prepared:
    """Open the prepared data set of `cfg`, made once for its content.

    report: takes one line of progress at a time. If it was made before, neither transformers nor datasets is imported.
    Errors: `DataError` for data that is missing, empty or broken, naming file and line; `ConfigError` for a tokenizer
    that cannot be loaded.
    """
    report = report or (lambda _: None)
    print_of_data = fingerprint(cfg)
    folder = folder_of(cfg.data.dataset_prepared_path, print_of_data)
    prepared = open_prepared(folder, print_of_data, report)
    if prepared is None:
        with lock(folder, report):
            prepared = open_prepared(folder, print_of_data, report)
            if prepared is None:
                with building(folder) as temporary:
                    stats = _build(cfg, temporary, report)
                    write_manifest(temporary, print_of_data, cfg.data.sequence_len, stats)
                prepared = open_prepared(folder, print_of_data, report)
    if prepared is None:
        raise DataError(f"the prepared data set {folder} cannot be read back; is its disk full or failing?")
    return prepared


@dataclass
class SourceStats:
    """What became of the records of one data set."""

    path: str
    type: str
    records: int = 0
    documents: int = 0
    invalid: int = 0
    too_long: int = 0
    truncated: int = 0
    too_short: int = 0
    no_target: int = 0
    duplicates: int = 0


class Collection:
    """Documents that were encoded, in files of their own until they are packed."""

    def __init__(self, folder: Path, name: str):
        self._tokens_file, self._mask_file = folder / f"{name}.tokens", folder / f"{name}.mask"
        self._lengths: list[np.ndarray] = []
        self._seen: set[bytes] = set()

    def add(self, cfg: Any, encoded: Any, stats: SourceStats) -> None:
        """Append a batch, without the documents that are too long, too short or seen before."""
        data = cfg.data
        tokens_out, mask_out, lengths = [], [], []
        offsets = np.concatenate(([0], np.cumsum(encoded.lengths))).tolist()
        for start, stop in pairwise(offsets):
            tokens, mask = encoded.tokens[start:stop], encoded.mask[start:stop]
            if len(tokens) > data.sequence_len:
                if data.excess_length_strategy == "drop":
                    stats.too_long += 1
                    continue
                if data.excess_length_strategy == "raise":
                    raise DataError(
                        f"data set {stats.path}: a sample has {len(tokens)} tokens, more than sequence_len "
                        f"({data.sequence_len}), and excess_length_strategy is raise; set a larger sequence_len, or "
                        "drop or truncate"
                    )
                tokens, mask = tokens[: data.sequence_len], mask[: data.sequence_len]
                stats.truncated += 1
                if not mask.any():
                    stats.no_target += 1
                    continue
            if len(tokens) < (data.min_sample_len or 0):
                stats.too_short += 1
                continue
            if data.dataset_exact_deduplication:
                key = hashlib.blake2b(tokens.tobytes() + mask.tobytes(), digest_size=16).digest()
                if key in self._seen:
                    stats.duplicates += 1
                    continue
                self._seen.add(key)
            tokens_out.append(tokens)
            mask_out.append(mask)
            lengths.append(len(tokens))
        stats.documents += len(lengths)
        if lengths:
            self._lengths.append(np.array(lengths, dtype=np.int64))
            with self._tokens_file.open("ab") as file:
                file.write(np.concatenate(tokens_out).tobytes())
            with self._mask_file.open("ab") as file:
                file.write(np.concatenate(mask_out).tobytes())

    @property
    def num_documents(self) -> int:
        return sum(map(len, self._lengths))

    def write(self, folder: Path, sequence_len: int, packing: bool, documents: np.ndarray) -> BlockSet:
        """Group `documents` into blocks and write them into `folder`."""
        folder.mkdir()
        offsets = np.concatenate([[0], *self._lengths]).cumsum()
        tokens = np.memmap(self._tokens_file, np.uint32, "r")
        mask = np.memmap(self._mask_file, np.uint8, "r")
        blocks = arrange(tokens, mask, offsets, sequence_len, packing=packing, documents=documents, folder=folder)
        blocks.save(folder)
        return blocks

    def remove(self) -> None:
        self._tokens_file.unlink(missing_ok=True)
        self._mask_file.unlink(missing_ok=True)


def _build(cfg: Any, folder: Path, report: Report) -> dict:
    from allranks.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(cfg)
    data = cfg.data
    train, train_sources = _collect(cfg, data.datasets, tokenizer, folder, "train", report)
    train_ids, eval_ids = _split(train.num_documents, data.val_set_size, split_seed(cfg))
    if data.shuffle_merged_datasets:
        train_ids = train_ids[_permutation(len(train_ids), _MERGE_SEED)]
    eval_packing = data.sample_packing if data.eval_sample_packing is None else data.eval_sample_packing

    report(f"packing {len(train_ids)} documents into blocks of {data.sequence_len} tokens")
    blocks = train.write(folder / "train", data.sequence_len, data.sample_packing, train_ids)
    stats = {**_stats(blocks), "datasets": [asdict(source) for source in train_sources]}
    stats |= added_tokens(cfg, blocks, tokenizer)
    if data.test_datasets:
        collection, sources = _collect(cfg, data.test_datasets, tokenizer, folder, "eval", report)
        everything = np.arange(collection.num_documents)
        held_out = collection.write(folder / "eval", data.sequence_len, eval_packing, everything)
        stats["eval"] = {**_stats(held_out), "datasets": [asdict(source) for source in sources]}
        collection.remove()
    elif len(eval_ids):
        held_out = train.write(folder / "eval", data.sequence_len, eval_packing, eval_ids)
        stats["eval"] = {**_stats(held_out), "datasets": []}
    train.remove()
    return stats


def _collect(
    cfg: Any, specs: list, tokenizer: Any, folder: Path, name: str, report: Report
) -> tuple[Collection, list[SourceStats]]:
    collection = Collection(folder, name)
    sources = [_collect_one(cfg, spec, tokenizer, collection, report) for spec in specs]
    if collection.num_documents == 0:
        reasons = ", ".join(f"{count} {what}" for what, count in _dropped(sources).items() if count) or "no record"
        raise DataError(
            f"no document is left of {', '.join(source.path for source in sources)}: {reasons}. "
            f"sequence_len is {cfg.data.sequence_len}"
        )
    return collection, sources


def _collect_one(cfg: Any, spec: Any, tokenizer: Any, collection: Collection, report: Report) -> SourceStats:
    from allranks.data.encode import choose_num_processes, encode
    from allranks.data.formats import encoder_for

    source = locate(spec)
    encoder = encoder_for(spec, cfg.data, tokenizer)
    kind = spec.type if isinstance(spec.type, str) and spec.type else ("own format" if spec.type else "tokenized")
    stats = SourceStats(path=spec.path, type=kind)
    if source.hub_id is not None:
        from allranks.data.hub import read_hub

        records = read_hub(spec)
    else:
        records = read(source, spec.split)
    if spec.shards:
        records = islice(records, spec.shards_idx, None, spec.shards)

    num_bytes = sum(path.stat().st_size for path, _ in source.files)
    num_processes = choose_num_processes(cfg.data.dataset_num_proc, num_bytes)
    problems: list[tuple[str, str]] = []
    report(f"{spec.path}: tokenizing as {kind}")
    for encoded in encode(records, encoder, tokenizer, num_processes):
        before = stats.records
        stats.records += encoded.num_records
        stats.invalid += len(encoded.problems)
        problems += encoded.problems[: _SHOWN_PROBLEMS - len(problems)]
        if stats.invalid and not cfg.data.skip_invalid:
            continue  # the run stops; go on only to count
        collection.add(cfg, encoded, stats)
        if before // 10_000 != stats.records // 10_000:
            report(f"{spec.path}: {stats.records} records")
    if stats.records == 0:
        raise DataError(f"data set {spec.path}: no record in it")
    if stats.invalid:
        message = _problem_list(spec.path, stats, problems)
        if not cfg.data.skip_invalid:
            raise DataError(f"{message}\nMend the data, or set skip_invalid: true to leave these records out")
        report(message)
    report(source_line(asdict(stats)))
    return stats


def _problem_list(path: str, stats: SourceStats, problems: list[tuple[str, str]]) -> str:
    lines = []
    for _, same in groupby(problems, key=lambda problem: problem[1]):
        places, messages = zip(*same, strict=True)
        lines += [f"  {place}" for place in places[:-1]]  # what is wrong is said once for records in a row
        lines.append(f"  {places[-1]}: {messages[0]}")
    if stats.invalid > len(problems):
        lines.append(f"  … and {stats.invalid - len(problems)} more")
    return "\n".join([f"data set {path}: {stats.invalid} of {stats.records} records are broken:", *lines])


def _split(num_documents: int, val_set_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Document ids for training and for evaluation, each in their order."""
    if not val_set_size:
        return np.arange(num_documents), np.empty(0, np.int64)
    count = val_set_size if isinstance(val_set_size, int) else max(1, round(num_documents * val_set_size))
    if count >= num_documents:
        raise DataError(
            f"val_set_size {val_set_size} takes {count} of {num_documents} documents, and leaves none to train"
        )
    order = _permutation(num_documents, seed)
    return np.sort(order[count:]), np.sort(order[:count])


def _permutation(count: int, seed: int) -> np.ndarray:
    bits = np.random.PCG64(np.random.SeedSequence([seed, count])).random_raw(count)
    return np.argsort(bits, kind="stable")


def _dropped(sources: list[SourceStats]) -> dict[str, int]:
    names = {
        "invalid": "invalid",
        "too_long": "too long",
        "too_short": "too short",
        "no_target": "without a target after truncation",
        "duplicates": "repeated",
    }
    return {text: sum(getattr(source, field) for source in sources) for field, text in names.items()}


def _stats(blocks: BlockSet) -> dict:
    tokens = int(blocks.token_counts.sum(dtype=np.int64))
    return {
        "documents": blocks.num_documents,
        "blocks": len(blocks),
        "tokens": tokens,
        "target_tokens": int(blocks.target_counts.sum(dtype=np.int64)),
        "packing_efficiency": tokens / (len(blocks) * blocks.sequence_len),
    }
