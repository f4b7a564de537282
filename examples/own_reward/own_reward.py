"""A reward function of your own: any function that takes a RewardRequest and returns a number.

Keep this file where you start the run from (or name its folder in `search_path`) and write in the recipe:

    reward:
      answer: {function: "samepath.rewards.exact:number", options: {marker: "#"}}
      shown_work: {function: "own_reward:shown_work", weight: 0.1, options: {min_steps: 2}}

The total is the weighted sum. It runs in a child process with limits on time and memory: what it raises, prints or hangs on
costs this one sample its score (counted by status in the metrics), never the run. Import heavy things at the top of the file:
imports have a time limit of their own and do not count against the memory limit. `async def` works as well.

Try it without training:

    python examples/own_reward/own_reward.py
"""

from pathlib import Path

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.settings import RewardSettings


def shown_work(request: RewardRequest, *, min_steps: int = 1) -> float:
    """Give 1 if the response works through at least `min_steps` equations before its answer, else the share it shows."""
    steps = request.response_text.count("=")
    return min(1.0, steps / min_steps)


def main() -> None:
    """Score two answers to one question the way a run does."""
    settings = RewardSettings.model_validate(
        {
            "parts": {
                "answer": {"function": "samepath.rewards.exact:number", "options": {"marker": "#"}},
                "shown_work": {"function": "own_reward:shown_work", "weight": 0.1, "options": {"min_steps": 2}},
            },
            "search_path": str(Path(__file__).parent),
            "num_workers": 1,
        }
    )
    question = {"prompt_text": "12+34+5=", "answer": {"answer": "51"}}
    with RewardRunner(settings) as runner:
        runner.check()
        requests = [RewardRequest(response_text=text, **question) for text in ("12+34=46 46+5=51 #51", "#510")]
        for score in runner.score(requests):
            print(score)


if __name__ == "__main__":
    main()
