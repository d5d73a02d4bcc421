"""What computes operations faster than torch, a folder each: speed, nothing else."""
