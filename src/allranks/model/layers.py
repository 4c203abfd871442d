"""Find the decoder layers: the unit that is sharded, recomputed and compiled."""

from collections import Counter

from torch import nn

from allranks.errors import ConfigError


def find_layers(model: nn.Module, wanted: str | None = None) -> list[nn.Module]:
    """Return the model's decoder layers in order.

    `wanted`: the class name from `transformer_layer_cls_to_wrap` (several separated by commas), checked against the
    model; without it, the classes that transformers says must not be split (`_no_split_modules`).

    Raises:
        ConfigError: `wanted` names a class that the model does not have, or no layer class can be found.
    """
    present = Counter(type(module).__name__ for module in model.modules())
    known = [name for name in sorted(getattr(model, "_no_split_modules", None) or []) if present[name]]
    if wanted:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        wrong = [name for name in names if not present[name]]
        if wrong:
            right = ", ".join(known) or ", ".join(name for name in present if name.endswith(("Layer", "Block")))
            raise ConfigError(
                f"fsdp_config.transformer_layer_cls_to_wrap: {type(model).__name__} has no {', '.join(wrong)}; "
                f"the right value is {right} (or leave the key out: it is found)"
            )
    else:
        names = known
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(
            f"cannot find the decoder layers of {type(model).__name__}; "
            "name their class in fsdp_config.transformer_layer_cls_to_wrap"
        )
    return layers
