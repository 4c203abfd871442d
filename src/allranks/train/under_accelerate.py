"""`accelerate launch … -m allranks.train` tells its ranks in variables what its file says. Does the config agree?"""

import os
from collections.abc import Mapping, MutableMapping

from allranks.config import RunConfig
from allranks.config.foreign.accelerate import LEFT_TO_ACCELERATE, contradictions, plain
from allranks.config.foreign.accelerate_default import default_file
from allranks.errors import ConfigError, UsageError

_NAMES = {
    "ACCELERATE_MIXED_PRECISION": "mixed_precision",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "gradient_clipping",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_backend",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "fsdp_transformer_layer_cls_to_wrap",
}
_OF_DEEPSPEED = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "zero_stage",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "offload_optimizer_device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "offload_param_device",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "zero3_init_flag",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "zero3_save_16bit_model",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": "deepspeed_config_file",
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "deepspeed_moe_layer_cls_names",
}
_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
}
_PREFIXES = ("FSDP_", "PARALLELISM_CONFIG_")
_LAYER_CLASS = "FSDP_TRANSFORMER_CLS_TO_WRAP"


def check_accelerate(cfg: RunConfig, env: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError naming each variable that contradicts the config, with the setting that it comes from.

    A value that `accelerate launch` sets where nobody gave one contradicts nothing: its file need not repeat
    the config.
    """
    said = {setting: env[name] for name, setting in _settings(env).items()}
    said = {setting: value for setting, value in said.items() if not _left(setting, value)}
    engines = [engine for name, engine in _ENGINES.items() if plain(env.get(name, "")) is True]
    if engines:
        said["distributed_type"] = engines[0]
    names = {setting: name for name, setting in _settings(env).items()}
    problems = [
        f"{found.setting} ({names.get(found.setting) or _engine_variable(env)}): {found.text}"
        for found in contradictions(said, cfg)
    ]
    if problems:
        raise ConfigError(
            f"`accelerate launch` and {cfg.source} contradict each other:\n  "
            + "\n  ".join(problems)
            + f"\n  these come from its --config_file, or without one from {_shown_default_file(env)}"
        )


def layers_named_only_there(cfg: RunConfig, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """As overrides of the config: the layers' class, where only Accelerate was told. The model knows if it is right."""
    name = env.get(_LAYER_CLASS) if _LAYER_CLASS in _settings(env) else None
    if not name or cfg.parallel.fsdp_settings.transformer_layer_cls_to_wrap:
        return {}
    return {"fsdp_config.transformer_layer_cls_to_wrap": name}


def refuse_one_process_of_several(env: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError in the only process of an `accelerate launch` that was told of several.

    With distributed_type MULTI_CPU or NO it starts one and says nothing.
    """
    if "ACCELERATE_USE_CPU" in env and "MASTER_ADDR" in env and "RANK" not in env:
        raise UsageError(
            "`accelerate launch` was told of several processes, but it started only this one: that is what it does "
            "with --cpu, and with distributed_type NO and MULTI_CPU; write distributed_type FSDP or MULTI_GPU "
            "(without a GPU the ranks train on the CPU anyway)"
        )


def forget_accelerate(env: MutableMapping[str, str] = os.environ) -> None:
    """Remove what was compared: transformers would read it again, and load no weights on most ranks."""
    for name in [*_settings(env), *_ENGINES]:
        env.pop(name, None)


def _settings(env: Mapping[str, str]) -> dict[str, str]:
    """Variable -> setting, of those that are set. FSDP's count only if Accelerate says that it is used."""
    found = {name: setting for name, setting in _NAMES.items() if name in env}
    if plain(env.get("ACCELERATE_USE_DEEPSPEED", "")) is True:
        found |= {name: setting for name, setting in _OF_DEEPSPEED.items() if name in env}
    used = {
        "FSDP_": plain(env.get("ACCELERATE_USE_FSDP", "")) is True,
        "PARALLELISM_CONFIG_": plain(env.get("ACCELERATE_USE_PARALLELISM_CONFIG", "")) is True,
    }
    for name in env:
        for prefix in _PREFIXES:
            if name.startswith(prefix) and used[prefix]:
                found.setdefault(name, name.lower())
    return found


def _left(setting: str, value: str) -> bool:
    said = plain(value)
    said = said.lower() if isinstance(said, str) else said
    return said is None or said in LEFT_TO_ACCELERATE.get(setting, ())


def _engine_variable(env: Mapping[str, str]) -> str:
    return next(name for name in _ENGINES if plain(env.get(name, "")) is True)


def _shown_default_file(env: Mapping[str, str]) -> str:
    path = default_file(env)
    return f"{path} (which is there)" if path.exists() else f"{path} (which is not there)"
