"""The trainers: groups, advantages, losses, batches, checkpoints and the logs of a training."""
