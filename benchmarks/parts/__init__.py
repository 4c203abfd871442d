"""What `python -m benchmarks.acceptance` tries on a machine, a module each: `run(place)` yields its rows."""
