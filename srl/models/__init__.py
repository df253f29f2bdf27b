"""Models: loading, adapters, the prefix tree and attention over it, scores of completions."""
