"""Held-out accuracy: what is asked of the pool, and what counts as right, failed and long."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rewards.score import Score
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.evaluation.held_out import Evaluation, Evaluations, evaluate, set_requests
from samepath.rl.evaluation.outcomes import digest_of
from samepath.rl.evaluation.sets import build_set
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.row import Task, TaskRow
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group
from tests.rl.sampled import Children, rollout


class Pool:
    """Answers sample `k` of every prompt with `k + 1` tokens; the rollouts in `failures` have none."""

    def __init__(self, failures: Sequence[str] = ()) -> None:
        self.failures = failures
        self.requests: list[GroupRequest] = []

    def sample(self, requests: Sequence[GroupRequest], on_group: Callable[[Group], None]) -> list[Group]:
        self.requests += requests
        groups = []
        for request in requests:
            made = [rollout(request.group_id, index) for index in range(len(request.seeds))]
            rollouts = tuple(
                replace(one, segments=(), text="", failure="prompt_too_long")
                if f"{one.group_id}/{one.sample_index}" in self.failures
                else one
                for one in made
            )
            groups.append(
                Group(group_id=request.group_id, prompt=request.prompt, sampling=request.sampling, rollouts=rollouts)
            )
        for group in reversed(groups):
            on_group(group)
        return groups


def task(count: int) -> Task:
    rows = [
        TaskRow(row_id=f"held-out-{index}", question="", text=f"{index}+1=", dataset="sums", row=index)
        for index in range(count)
    ]
    return Task(name="sums", train=[], held_out=rows, seed=0)


def measured(
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    rows: int = 2,
    scores: dict[str, Score] | None = None,
    pool: Pool | None = None,
) -> Evaluation:
    name = next(iter(recipe.evaluation.named))
    asked = build_set(recipe, name, task(rows), Path())
    requests = set_requests(asked, tokenizer, recipe.seed, recipe.rl.group_size)
    scorer = GroupScorer(Children(scores))
    return evaluate(asked, requests, pool or Pool(), scorer, recipe.reward.main_part, recipe.evaluation.full_reward)


def short(value: float) -> Score:
    """A score whose first part has this value; the recipe of these tests names its part `short`."""
    return Score(total=-1.0, parts={"short": value})


def test_evaluate_asks_once_for_each_held_out_row_with_the_evaluations_own_sampling(
    tiny_recipe, tokenizer: Tokenizer
) -> None:
    recipe = tiny_recipe("sampling.temperature=0.7", "sampling.top_k=5", "sampling.min_p=0.1", "evaluation.samples=2")
    pool = Pool()
    measured(recipe, tokenizer, rows=3, pool=pool, scores={})
    assert [request.group_id for request in pool.requests] == ["eval-0", "eval-1", "eval-2"]
    assert [request.prompt.text for request in pool.requests] == ["0+1=", "1+1=", "2+1="]
    for request in pool.requests:
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.0, 0, 1.0, 0.0)
        assert sampling.max_new_tokens == recipe.sampling.max_new_tokens
        assert len(request.seeds) == 2
    assert recipe.sampling.temperature == 0.7


def test_evaluate_temperature_and_top_p_of_the_evaluation_reach_the_engine(tiny_recipe, tokenizer: Tokenizer) -> None:
    pool = Pool()
    measured(tiny_recipe("evaluation.temperature=0.6", "evaluation.top_p=0.5"), tokenizer, pool=pool, scores={})
    assert {(request.sampling.temperature, request.sampling.top_p) for request in pool.requests} == {(0.6, 0.5)}


def test_evaluate_seeds_repeat_and_differ_by_prompt_sample_and_run_seed(tiny_recipe, tokenizer: Tokenizer) -> None:
    def seeds(*overrides: str) -> list[tuple[int, ...]]:
        pool = Pool()
        measured(tiny_recipe("evaluation.samples=2", *overrides), tokenizer, pool=pool, scores={})
        return [request.seeds for request in pool.requests]

    first = seeds()
    assert seeds() == first
    everything = [seed for made in (first, seeds("seed=1")) for group in made for seed in group]
    assert len(set(everything)) == len(everything) == 8


def test_evaluate_counts_right_answers_among_the_scored_ones(tiny_recipe, tokenizer: Tokenizer) -> None:
    """Of four samples one has no usable reward and one no answer: one of the two that are left is right."""
    scores = {
        "eval-0/0": short(1.0),
        "eval-0/1": Score(total=math.nan, status="timeout"),
        "eval-1/0": short(0.99),
    }
    pool = Pool(failures=["eval-1/1"])
    result = measured(tiny_recipe("evaluation.samples=2"), tokenizer, scores=scores, pool=pool)
    assert (result.accuracy, result.num_scored, result.num_failed) == (0.5, 2, 2)
    # 1 and 2 tokens, 1 and none.
    assert result.mean_length == 1.0
    assert result.metrics() == {"eval/accuracy": 0.5, "eval/scored": 2.0, "eval/failed": 2.0, "eval/length_mean": 1.0}


def test_evaluate_tells_outcomes_by_prompt_whatever_requests_they_were_asked_in(
    tiny_recipe, tokenizer: Tokenizer
) -> None:
    """Five samples of two prompts, at most two a request: of the first one fails, two are right; of the second none is scored."""
    recipe = tiny_recipe("evaluation.samples=5", "rl.group_size=2")
    pool = Pool(failures=[f"eval-{part}/{sample}" for part in ("1", "1.1", "1.2") for sample in range(2)])
    scores = {"eval-0/0": short(1.0), "eval-0/1": short(0.5), "eval-0.1/0": short(1.0), "eval-0.1/1": short(0.0)}
    scores["eval-0.2/0"] = Score(total=0.0, parts={}, status="error", detail="short: away")
    found = measured(recipe, tokenizer, scores=scores, pool=pool).outcomes
    assert (found.scored, found.right) == ((4, 0), (2, 0))
    assert (found.rewards[0], math.isnan(found.rewards[1])) == (-1.0, True)
    rows = task(2).held_out
    assert found.prompts == tuple(map(digest_of, rows))
    assert digest_of(replace(rows[0], row_id="x", row=9)) == digest_of(rows[0]) != digest_of(rows[1])
    assert digest_of(replace(rows[0], answer={"answer": "2"})) != digest_of(rows[0])


def test_evaluate_full_reward_is_the_recipes(tiny_recipe, tokenizer: Tokenizer) -> None:
    scores = {"eval-0/0": short(0.5), "eval-1/0": short(0.4)}
    assert measured(tiny_recipe("evaluation.full_reward=0.5"), tokenizer, scores=scores).accuracy == 0.5


def test_evaluate_looks_at_the_first_part_and_at_its_first_entry(tiny_recipe, tokenizer: Tokenizer) -> None:
    """A function that returns a mapping gives `part/entry`; other parts, right or wrong, count for nothing."""
    scores = {
        "eval-0/0": Score(total=0.0, parts={"other": 0.0, "short/answer": 1.0, "short/form": 0.0}),
        "eval-1/0": Score(total=9.0, parts={"other": 1.0, "short/answer": 0.0, "short/form": 1.0}),
    }
    assert measured(tiny_recipe(), tokenizer, scores=scores).accuracy == 0.5


@pytest.mark.parametrize("rows", [0, 1])
def test_evaluate_without_a_scored_answer_has_no_accuracy(rows: int, tiny_recipe, tokenizer: Tokenizer) -> None:
    result = measured(tiny_recipe(), tokenizer, rows=rows, pool=Pool(failures=["eval-0/0"]))
    assert math.isnan(result.accuracy)
    assert (result.num_scored, result.num_failed, result.mean_length) == (0, rows, 0.0)
    assert len(result.groups) == rows


SET = "evaluation.sets={many: {num_samples: 5, pass_at: [1, 2, 5], sampling: {temperature: 0.8, min_p: 0.1, max_new_tokens: 9}}}"


def test_set_is_asked_n_times_with_its_own_sampling_in_groups_that_fit(tiny_recipe, tokenizer: Tokenizer) -> None:
    """The recipe's groups have 4 samples, which its engine is known to hold: 5 are asked as 4 and 1, each with a seed of its own."""
    pool = Pool()
    measured(tiny_recipe(SET), tokenizer, rows=2, pool=pool, scores={})
    asked = [(request.group_id, len(request.seeds)) for request in pool.requests]
    assert asked == [("eval-many-0", 4), ("eval-many-0.1", 1), ("eval-many-1", 4), ("eval-many-1.1", 1)]
    sampling = pool.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.max_new_tokens) == (0.8, 1.0, 0.1, 9)
    seeds = [seed for request in pool.requests for seed in request.seeds]
    assert len(set(seeds)) == 10


def test_set_reports_pass_at_k_by_prompt_and_the_mean_reward(tiny_recipe, tokenizer: Tokenizer) -> None:
    """Prompt 0 has 1 of 5 right; prompt 1 has 2 of 4, its fifth response having no reward, so that pass@5 is prompt 0's alone."""
    wrong, right = Score(total=0.25, parts={"short": 0.0}), Score(total=1.25, parts={"short": 1.0})
    scores = {f"eval-many-{row}{part}": wrong for row in (0, 1) for part in ("/0", "/1", "/2", "/3", ".1/0")}
    scores |= {"eval-many-0/2": right, "eval-many-1/0": right, "eval-many-1/3": right}
    scores["eval-many-1.1/0"] = Score(total=math.nan, status="timeout")
    result = measured(tiny_recipe(SET), tokenizer, rows=2, scores=scores)
    assert result.accuracy == pytest.approx(3 / 9)
    assert result.mean_reward == pytest.approx((6 * 0.25 + 3 * 1.25) / 9)
    assert result.pass_at == pytest.approx({1: (1 / 5 + 2 / 4) / 2, 2: (4 / 10 + 5 / 6) / 2, 5: 1.0})
    assert result.set_metrics("many") == {
        "evaluation/many/accuracy": result.accuracy,
        "evaluation/many/reward_mean": result.mean_reward,
        "evaluation/many/pass_at_1": result.pass_at[1],
        "evaluation/many/pass_at_2": result.pass_at[2],
        "evaluation/many/pass_at_5": 1.0,
        "evaluation/many/failed": 1.0,
        "evaluation/many/length_mean": (1 + 2 + 3 + 4 + 1) / 5,
        "evaluation/many/truncated": 0.0,
    }


def result_of(accuracy: float) -> Evaluation:
    return Evaluation(accuracy=accuracy, num_scored=2, num_failed=0, mean_length=3.0, groups=())


def test_evaluations_name_every_set_and_the_first_as_the_only_one_was_named() -> None:
    both = Evaluations(sets={"easy": result_of(0.75), "hard": result_of(math.nan)})
    metrics = both.metrics()
    assert (metrics["eval/accuracy"], metrics["evaluation/easy/accuracy"]) == (0.75, 0.75)
    assert math.isnan(metrics["evaluation/hard/accuracy"])
    assert both.lines() == ["accuracy on easy 0.750 (2 responses)", "accuracy on hard none (2 responses)"]
    plain = Evaluations(sets={"": result_of(0.5)})
    assert set(plain.metrics()) == {"eval/accuracy", "eval/scored", "eval/failed", "eval/length_mean"}
    assert plain.lines() == ["held-out accuracy 0.500 (2 responses)"]
