"""Runs whose network is on another device than the driver's bookkeeping, or in another type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from samepath.model.network.network import CausalLM
from samepath.model.policy import Policy
from samepath.rl.learner.policy_checks import check_policy
from samepath.rl.recipe.recipe import Recipe
