"""Which modules an adapter goes to, and the bits of its base: said in all trainers alike."""

from allranks.importing.imported import Imported


def set_targets(imported: Imported, names: list[str]) -> None:
    """`all` and `all-linear` are every linear layer; one name with signs of a pattern is a pattern."""
    if {"all", "all-linear"} & set(names):
        imported.set("lora_target_linear", True)
        names = [name for name in names if name not in ("all", "all-linear")]
    if len(names) == 1 and any(sign in names[0] for sign in "*^$|\\("):
        imported.set("lora_target_modules", names[0])
    elif names:
        imported.set("lora_target_modules", names)


def set_quantized(imported: Imported, bits: int | None, double: bool, kind: str | None) -> None:
    """4 bits are Q-LoRA, 8 a LoRA over 8-bit weights."""
    if bits == 4:
        imported.set("adapter", "qlora")
        imported.set("load_in_4bit", True)
        imported.set("bnb_config_kwargs.bnb_4bit_use_double_quant", double)
        imported.set("bnb_config_kwargs.bnb_4bit_quant_type", kind)
    elif bits == 8:
        imported.set("load_in_8bit", True)
