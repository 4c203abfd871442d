"""Other projects' programs under their own argument lists, so that their launch scripts run as they are."""
