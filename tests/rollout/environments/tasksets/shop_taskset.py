"""Real tasksets of verifiers: sums with a tool server that keeps notes in its state, and a guessing game with a user."""

from collections.abc import Iterator

import verifiers.v1 as vf


class Notes(vf.State):
    looked: int = 0


class PriceTools(vf.Toolset[vf.ToolsetConfig, Notes]):
    TOOL_PREFIX = "shop"

    async def setup_task(self, task) -> None:
        self.prices = task.prices

    @vf.tool
    async def price(self, item: str) -> int:
        """Price of one item."""
        self.state.looked += 1
        return self.prices[item]

    @vf.tool
    async def die(self) -> int:
        """Ends the server."""
        import os

        os._exit(9)

    @vf.tool
    async def hang(self) -> int:
        """Never returns."""
        import asyncio

        await asyncio.Event().wait()
        return 0


class SumData(vf.TaskData):
    prices: dict[str, int]
    answer: int


class SumTask(vf.Task[SumData, Notes, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config) -> list:
        return [PriceTools(vf.ToolsetConfig())]

    @vf.reward(priority=1)
    async def right(self, trace) -> float:
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward(weight=0.25)
    async def looked(self, trace) -> float:
        return float(trace.state.looked)

    @vf.reward(weight=0.125)
    async def turns(self, trace) -> float:
        return float(trace.num_turns)

    @vf.stop
    async def too_many_results(self, trace: vf.Trace) -> bool:
        return len(trace.tool_messages) >= 4


class ShopConfig(vf.TasksetConfig):
    count: int = 3


class ShopTaskset(vf.Taskset[SumTask, ShopConfig]):
    def load(self) -> Iterator[SumTask]:
        for index in range(self.config.count):
            data = SumData(
                prompt=f"What do an apple and {index} pears cost?",
                system_prompt="Look prices up.",
                prices={"apple": 3, "pear": 4},
                answer=3 + 4 * index,
            )
            yield SumTask(data, self.config.task)


__all__ = ["ShopTaskset"]

if __name__ == "__main__":
    PriceTools.run()
