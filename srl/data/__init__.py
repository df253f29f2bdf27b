"""From expert solutions to rows: steps, prompts, splits, and which row comes next."""
