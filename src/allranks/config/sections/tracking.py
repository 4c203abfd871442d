"""Keys of what is reported while a run goes on."""

from pydantic import Field

from allranks.config.sections.section import Section


class TrackingConfig(Section):
    """Progress and watchdogs."""

    logging_steps: int = Field(1, ge=1)
    """Report every so many steps."""
    loss_watchdog_threshold: float | None = Field(None, gt=0)
    """Stop when the loss stays above this …"""
    loss_watchdog_patience: int | None = Field(None, ge=1)
    """… for so many steps in a row (3)."""
