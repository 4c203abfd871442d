"""Which documents are trained on, in which order, and which are set aside for evaluation."""

from typing import Any

import numpy as np

from allranks.data.collection import SourceStats
from allranks.errors import DataError

# Mixing the data sets is fixed, so that another `seed` needs no new preparation.
_MERGE_SEED = 0


def drawn_documents(data: Any, specs: list, sources: list[SourceStats]) -> np.ndarray:
    """Ids of the documents that `weight`, `dataset_shard_num` and `shuffle_before_merging_datasets` give, in order.

    Documents are numbered through all data sets. Notes in `sources` how many `weight` leaves out.
    """
    parts, first = [np.empty(0, np.int64)], 0
    for index, (spec, stats) in enumerate(zip(specs, sources, strict=True)):
        ids = np.arange(first, first + stats.documents)
        first += stats.documents
        shuffled = ids[permutation(len(ids), index + 1)]
        if spec.weight is not None and len(ids):
            count = max(1, round(spec.weight * len(ids)))
            stats.not_drawn = len(ids) - count
            shuffled = shuffled[:count]
            ids = np.sort(shuffled)
        parts.append(shuffled if data.shuffle_before_merging_datasets else ids)
    merged = np.concatenate(parts)
    return merged[data.dataset_shard_idx :: data.dataset_shard_num] if data.dataset_shard_num else merged


def split_off(
    documents: np.ndarray, origins: list[np.ndarray], val_set_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents for training and for evaluation, each in their order. A record's documents stay together.

    origins: for each document, by its id, what documents of the same record share; the first that leaves some to train
    is taken (equal records stay together, unless all are equal). Errors: `DataError` if nothing would be left to train.
    """
    if not val_set_size:
        return documents, np.empty(0, np.int64)
    total = len(documents)
    count = val_set_size if isinstance(val_set_size, int) else max(1, round(total * val_set_size))
    if count >= total:
        raise DataError(f"val_set_size {val_set_size} takes {count} of {total} documents, and leaves none to train")
    drawn = permutation(total, seed)
    for origin in origins:
        is_held_out = _held_out(origin[documents], drawn, count)
        if not is_held_out.all():
            return documents[~is_held_out], documents[is_held_out]
    raise DataError(
        f"val_set_size {val_set_size}: all {total} documents come from one record, which is either trained or "
        "evaluated; give evaluation data of its own with test_datasets"
    )


def _held_out(origin: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """bool[D]: about `count` documents, as `order` draws them, with all of the same origin."""
    _, record_of, sizes = np.unique(origin, return_inverse=True, return_counts=True)
    held_out = np.zeros(len(sizes), bool)
    drawn = record_of[order]
    left = count
    for record in drawn[np.sort(np.unique(drawn, return_index=True)[1])].tolist():  # each once, as they come
        if sizes[record] <= left:
            held_out[record] = True
            left -= sizes[record]
        if not left:
            break
    if left == count:  # every record is more than what is asked for
        held_out[sizes.argmin()] = True
    return held_out[record_of]


def mixed(documents: np.ndarray) -> np.ndarray:
    """The documents of all data sets mixed."""
    return documents[permutation(len(documents), _MERGE_SEED)]


def permutation(count: int, seed: int) -> np.ndarray:
    """A permutation from (seed, count) that is the same in every numpy version (raw bits are, NEP 19)."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, count])).random_raw(count)
    return np.argsort(bits, kind="stable")
