"""Scores one step of the policy, mostly against the expert's step.

A step reward is a plain function of a frozen `StepContext`. A `RewardSum` calls several rewards in
worker processes and adds them up with their weights. This package does not depend on the training
code. From `environments` it imports only the rules for final answers.
"""

from __future__ import annotations

from rewards.by_path import CodeNameError
from rewards.combine import (
    FORMAT_FAILURE_REWARD,
    PendingScores,
    RewardCheck,
    RewardError,
    RewardSum,
    StepScore,
)
from rewards.loading import BUILT_INS
from rewards.similarity import normalize, similarity, similarity_lift, similarity_reward
from rewards.types import BatchedReward, SingleReward, StepContext, StepReward

__all__ = [
    "BUILT_INS",
    "FORMAT_FAILURE_REWARD",
    "BatchedReward",
    "CodeNameError",
    "PendingScores",
    "RewardCheck",
    "RewardError",
    "RewardSum",
    "SingleReward",
    "StepContext",
    "StepReward",
    "StepScore",
    "normalize",
    "similarity",
    "similarity_lift",
    "similarity_reward",
]
