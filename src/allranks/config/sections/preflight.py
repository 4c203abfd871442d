"""Keys of what is checked on all nodes before a run."""

from pydantic import Field

from allranks.config.sections.section import Section


class PreflightSettings(Section):
    """What becomes of findings, by the ids of the checks that make them (`docs/checks.md` lists them)."""

    strict: list[str] | None = Field(None, min_length=1)
    """Checks whose warnings refuse the start, as errors do."""
    ignore: list[str] | None = Field(None, min_length=1)
    """Checks whose findings are accepted: they are shown and kept in the manifest, and refuse nothing."""
    skip: bool | list[str] = False
    """Checks that are not made; `true` starts several nodes without any."""


class PreflightConfig(Section):
    """What is checked on all nodes before a run."""

    preflight: PreflightSettings | None = None
    """What becomes of the findings."""

    @property
    def settings(self) -> PreflightSettings:
        """`preflight`, or its defaults where the config has none."""
        return self.preflight or PreflightSettings.model_validate({})
