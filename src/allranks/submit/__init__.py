"""Batch jobs of Slurm and PBS: what was asked -> a script of a few lines -> sbatch or qsub.

`job` is what was asked, checked; `script` writes what both schedulers share; `slurm` and `pbs` hold what differs."""
