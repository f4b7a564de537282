"""A recipe's kind of reward inside an environment: answers are judged in child processes, with the limits that docs/rewards.md states."""

import asyncio
import queue
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
    """Judges answers; its children start with the first one, and end with the judge.

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
                ended: queue.SimpleQueue[None] = queue.SimpleQueue()
                threading.Thread(target=_close_after, args=(ended, self._runner), daemon=True).start()
                weakref.finalize(self, ended.put, None).atexit = False
        return self._runner.submit(request)


def _close_after(ended: "queue.SimpleQueue[None]", runner: RewardRunner) -> None:
    """Close the runner in a thread of its own: the judge may be collected in any thread, while it holds any lock."""
    ended.get()
    runner.close()
