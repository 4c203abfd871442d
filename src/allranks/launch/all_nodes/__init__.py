"""All nodes from one: started over ssh, Slurm or PBS, and shown on one terminal."""
