"""Similarity with difflib's autojunk, which the paper's formula leaves open, as a reward."""

from __future__ import annotations

from difflib import SequenceMatcher

from rewards import StepContext, normalize


def similarity(step: StepContext) -> float:
    """Characters that are frequent in an expert's step of 200 or more start no match."""
    return SequenceMatcher(None, normalize(step.action), normalize(step.expert_step)).ratio()
