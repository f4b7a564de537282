"""A real taskset of verifiers without an end, whose environment plays a user: it says higher or lower."""

import itertools
import random
from collections.abc import Iterator

import verifiers.v1 as vf


class GuessData(vf.TaskData):
    hidden: int


class GuessTask(vf.Task[GuessData]):
    pass


class GuessTaskset(vf.Taskset[GuessTask]):
    INFINITE = True

    def load(self) -> Iterator[GuessTask]:
        for index in itertools.count():
            yield GuessTask(GuessData(prompt="Guess my number.", hidden=index), self.config.task)


class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task, agents) -> None:
        found = False
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated and not found:
                guess = int(segment.last_reply)
                found = guess == task.data.hidden
                if not found:
                    hint = "higher" if guess < task.data.hidden else "lower"
                    segment = await interaction.turn(f"{hint} {random.random()}")
        interaction.trace.record_reward("found", float(found))
        interaction.trace.record_reward("turns", float(interaction.trace.num_turns), weight=0.0)


__all__ = ["GuessEnv", "GuessTaskset"]
