"""The keys of a config that an earlier version resolved, read by this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allranks.config.load import resolve_mapping
from allranks.config.run import SECTION_OF, SECTIONS, RunConfig
from allranks.errors import ConfigError


def with_defaults(earlier: Mapping[str, Any], cfg: RunConfig) -> dict[str, Any]:
    """`earlier`, the flat keys of another config, with the defaults of now for the keys that it does not have.

    Such a key had no value, or the version that wrote it did not know it, and did what its default does now. A default
    that follows from other keys is what `cfg` would have if its user had not set the key.
    """
    flat = cfg.flat()
    defaults = {key: default_of(key) for key in SECTION_OF}
    new = [key for key, value in flat.items() if key not in earlier and value != defaults[key]]
    if new:
        try:
            unset = resolve_mapping({key: value for key, value in flat.items() if key not in new}, cfg.source).flat()
        except ConfigError:
            unset = {}  # they cannot all be left out: then the plain defaults are the best answer
        defaults |= {key: unset[key] for key in new if key in unset}
    return {**defaults, **earlier}


def default_of(key: str) -> Any:
    """What a key is if nobody says it and nothing else decides it, as a plain JSON type; None for "no value"."""
    section = SECTIONS[SECTION_OF[key]]
    field = section.model_fields[key]
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True)
    return section.model_construct(**{key: default}).model_dump(mode="json", include={key})[key]
