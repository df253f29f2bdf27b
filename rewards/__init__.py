"""What is a good step? Functions that score one step of the policy against the expert's.

A step reward is a plain function of a frozen `StepContext`; a `RewardSum` weighs several of them.
This package knows nothing of data sets and nothing of training.
"""

from __future__ import annotations

from rewards.combine import (
    BUILT_INS,
    FORMAT_FAILURE_REWARD,
    RewardError,
    RewardSum,
    StepScore,
)
from rewards.similarity import normalize, similarity, similarity_lift, similarity_reward
from rewards.types import StepContext, StepReward

__all__ = [
    "BUILT_INS",
    "FORMAT_FAILURE_REWARD",
    "RewardError",
    "RewardSum",
    "StepContext",
    "StepReward",
    "StepScore",
    "normalize",
    "similarity",
    "similarity_lift",
    "similarity_reward",
]
