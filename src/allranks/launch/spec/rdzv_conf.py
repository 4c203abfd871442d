"""torchrun's `--rdzv-conf`: settings of its own rendezvous, as `join_timeout=600,is_host=1`."""

from __future__ import annotations

from collections.abc import Sequence

_OPTION = "--rdzv-conf"


def rdzv_conf(words: Sequence[str]) -> dict[str, str]:
    """The settings that the user gave among torchrun's options; the last `--rdzv-conf` counts, as for torchrun."""
    text = ""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == _OPTION:
            text = value if equals else next(iter(words[position + 1 :]), "")
    pairs = (setting.partition("=") for setting in text.split(",") if setting.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def is_host(words: Sequence[str]) -> bool | None:
    """Whether the user says that this node has the rendezvous, or has it not; None where nothing is said."""
    said = rdzv_conf(words).get("is_host")
    # As torch.distributed.elastic.rendezvous.api.RendezvousParameters.get_as_bool reads it.
    return None if said is None else said.lower() in ("1", "true", "t", "yes", "y")
