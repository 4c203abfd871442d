"""Speed, measured side by side with peers in one run. Tests never time anything; this does nothing else."""
