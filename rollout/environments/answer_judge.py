"""A recipe's kind of reward inside an environment: answers are judged in child processes, with the limits that docs/rewards.md states."""

import asyncio
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.sandbox.process import RewardStartError
from samepath.rewards.score import Score
from samepath.rewards.settings import RewardSettings
from samepath.rollout.environments.protocol import EnvironmentFailure


class AnswerJudge:
    """Judges answers; its children start with the first one and end with it.

    `reward` is what a recipe says under `reward`: a function's path, or parts with weights beside limits. Raises ValueError for another.
    """

    def __init__(self, reward: str | Mapping[str, Any]) -> None:
        self._settings = RewardSettings.model_validate(reward)
        self._runner: RewardRunner | None = None
        self._lock = threading.Lock()

    async def score(self, request: RewardRequest) -> Score:
        """Its score, or why there is none. Raises EnvironmentFailure if no child can be started."""
        try:
            return await asyncio.wrap_future(await asyncio.to_thread(self._submit, request))
        except RewardStartError as error:
            raise EnvironmentFailure("start", str(error)) from error

    def _submit(self, request: RewardRequest) -> Future[Score]:
        """Waits until the children have started, if they have not."""
        with self._lock:
            if self._runner is None:
                self._runner = RewardRunner(self._settings)
                weakref.finalize(self, self._runner.close)
        return self._runner.submit(request)
