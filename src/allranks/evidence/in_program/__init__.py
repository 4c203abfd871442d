"""What is in a rank to answer who asks it. The folder stands first in the PYTHONPATH of anyone's program: see
`launch/node/rank.py`. It holds what has to be found there, and nothing else."""
