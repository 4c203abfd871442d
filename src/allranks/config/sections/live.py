"""Keys of how a run is watched while it goes on."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import Section


class HangTimeouts(Section):
    """For how many seconds ranks may be at the same place, by the phase that they are in."""

    rendezvous: int | None = Field(None, ge=1)
    """Until all ranks have met."""
    mesh: int | None = Field(None, ge=1)
    """Until they know their places."""
    model: int | None = Field(None, ge=1)
    """Until the model is loaded."""
    first_step: int | None = Field(None, ge=1)
    """The first step of a start, which also compiles."""
    step: int | None = Field(None, ge=1)
    """Any other step; if not given, 240 or 16 times the median of the last steps, whichever is longer."""
    evaluation: int | None = Field(None, ge=1)
    """One evaluation."""
    checkpoint: int | None = Field(None, ge=1)
    """One checkpoint, or the wait for the one before."""
    export: int | None = Field(None, ge=1)
    """The result for Hugging Face tools."""


class LiveConfig(Section):
    """Watching the ranks while they run."""

    hang_timeout: HangTimeouts | None = None
    """Seconds after which ranks that do not go on are taken to hang, by phase."""
    on_hang: Literal["end", "restart", "report"] = "end"
    """What becomes of a run that hangs: it says who was missing, and ends; or all ranks start again from the newest \
checkpoint, as often as `--max-restarts` or `ray_max_failures` says; or it goes on waiting."""
