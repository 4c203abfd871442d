"""What torch.distributed.checkpoint (DCP) writes and reads. The only part of the room that imports torch."""
