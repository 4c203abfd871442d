"""`allranks bench-scaling`: a config timed on several numbers of nodes, and where the speed of more nodes is lost."""

from allranks.scaling.bench import ScalingBench, bench_scaling

__all__ = ["ScalingBench", "bench_scaling"]
