"""The trainers: groups, advantages, loss, batches, checkpoints, and what a training writes down."""
