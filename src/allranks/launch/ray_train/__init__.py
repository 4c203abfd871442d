"""Start the ranks with Ray Train, on a Ray cluster that is there or on one of this machine's own.

    driver (`allranks train`) <- coordinator -> workers (Ray Train's, one a rank) -> child: engine (`-m allranks.train`)

The driver connects to the cluster and asks Ray Train to run the ranks there. Each of the trainer's workers starts our
engine as a child, as torchrun would: so a run is the same in every way of starting, a crash of a rank cannot take the
worker with it, and the driver needs no torch. The worker passes on what the engine says in its events (metrics,
checkpoints) to Ray, and what the driver says (stop) to the engine. Ray itself is imported only where it is used."""

from allranks.launch.ray_train.start import start_ray, with_launcher

__all__ = ["start_ray", "with_launcher"]
