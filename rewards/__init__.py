"""What is a good step? Functions that score one step of the policy against the expert's.

A step reward is a plain function of a frozen `StepContext`; a `RewardSum` weighs several of them
and asks them in worker processes. This package knows nothing of training, and of `environments`
only where a text states its final answer.
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
