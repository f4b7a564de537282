"""Samepath's side of the benchmark: the project's own loop, `runtime: inline`, with forced response lengths and nothing recorded.

Run in a process of its own: `python -m benchmarks.samepath case.json result.json`.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.case import ALPHABET, Case, PeerResult, prompt_texts, resident_bytes, response_lengths
from samepath.model.config import ModelConfig
from samepath.model.files.config_file import CONFIG_FILE, read_config
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rewards.runner import RewardRunner
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.feed import Feed
from samepath.rl.learner.handle import InlineLearner, LearnerHandle
from samepath.rl.loop import Loop
from samepath.rl.machine import package_versions
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.run_state import RunState
from samepath.rl.saving import Saving
from samepath.rl.tasks.row import Task
from samepath.rl.tracking.tracker import Tracker
from samepath.rl.training import inline_pool
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.request import GroupRequest
from samepath.rollout.seeds import seed_of
from samepath.rollout.types import Prompt

MODEL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
}
"""recipes/quickstart.yaml's network, for longer sequences."""


def bench_recipe(case: Case, runs_dir: Path) -> Recipe:
    """The recipe that the case stands for; its task is never built, because the loop below makes its own requests."""
    return Recipe.model_validate(
        {
            "name": "bench",
            "seed": case.seed,
            "runtime": "inline",
            "runs_dir": str(runs_dir),
            "model": {"kind": "new", "alphabet": ALPHABET, "config": MODEL},
            "task": {"kind": "reasoning_gym", "dataset": "chain_sum"},
            "reward": {
                "parts": {"digits": {"function": "benchmarks.reward:share_of_digits"}},
                "num_workers": 1,
            },
            "sampling": {"max_new_tokens": case.max_new_tokens, "ignore_stop": True},
            "engine": {"cache_tokens": 16384, "max_sequences": max(case.samples_per_step, 16)},
            "rollout": {"threads": 1},
            "learner": {"ranks": case.setting.threads},
            "rl": {
                "prompts_per_step": case.prompts_per_step,
                "group_size": case.group_size,
                "updates_per_rollout": case.updates_per_rollout,
                "objective": {"kl": {"beta": case.beta}},
            },
            "optimizer": {"lr": case.learning_rate},
            "tracking": {"kind": "jsonl"},
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFeed(Feed):
    """The case's prompts and forced lengths in place of a task's."""

    case: Case

    def request(self, number: int) -> GroupRequest:
        """One group, every sample of which has the length of its place."""
        step, index = divmod(number, self.recipe.rl.prompts_per_step)
        text, length = prompt_texts(self.case, step)[index], response_lengths(self.case, step)[index]
        return GroupRequest(
            group_id=f"s{step + 1}-g{index}",
            prompt=Prompt(prompt_id=f"s{step}-{index}", text=text, token_ids=self.tokenizer.encode(text)),
            sampling=self.recipe.sampling.model_copy(update={"max_new_tokens": length}),
            seeds=tuple(seed_of(self.case.seed, step, index, sample) for sample in range(self.case.group_size)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLoop(Loop):
    """The loop with the case's prompts and lengths in place of a task's."""

    case: Case

    def feed(self) -> BenchFeed:
        """See `BenchFeed`."""
        return BenchFeed(recipe=self.recipe, task=self.task, tokenizer=self.tokenizer, case=self.case)


def loop_parts(
    recipe: Recipe, reference: Path, learner: LearnerHandle, pool: RolloutPool, runner: RewardRunner
) -> dict[str, Any]:
    """A loop's fields. Nothing is kept, as with the peer's `report_to="none"`, nothing saved and nothing evaluated."""
    tracker, display = Tracker([]), ProgressDisplay(total_steps=1)
    return {
        "recipe": recipe,
        "task": Task(name="bench", train=[], held_out=[], seed=0),
        "sets": (),
        "tokenizer": load_tokenizer(reference),
        "learner": learner,
        "pool": pool,
        "scorer": GroupScorer(runner),
        "saving": Saving(recipe=recipe, learner=learner, tracker=tracker, display=display, state=RunState(), newest=-1),
        "tracker": tracker,
        "alerts": Alerts(recipe, tracker),
        "display": display,
    }


def active_parameters(config: ModelConfig) -> tuple[int, int]:
    """(all, used by one token): routed experts count with the share that is chosen."""
    model = CausalLM(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)
    return total, total - routed + routed * config.num_experts_per_tok // config.n_routed_experts


def run_case(case: Case, folder: Path, idle_bytes: int) -> PeerResult:
    """Build learner, engine and reward process, run all steps, report the measured ones."""
    recipe = bench_recipe(case, folder)
    learner = InlineLearner(recipe, folder, recipe.run_dir, None)
    learner.start_rl()
    pool = inline_pool(
        learner.reference_dir, recipe.engine, recipe.rollout, recipe.model.placement, folder, learner.sampling_ranks
    )
    pool.load_weights(learner.weights(), 0)
    config = read_config(learner.reference_dir / CONFIG_FILE)
    with RewardRunner(recipe.reward) as runner:
        loop = BenchLoop(case=case, **loop_parts(recipe, learner.reference_dir, learner, pool, runner))
        steps, step_s = [], []
        for step in range(case.warmup_steps + case.measured_steps):
            started = time.perf_counter()
            metrics = loop.one_step(step)
            step_s.append(time.perf_counter() - started)
            steps.append(metrics)
        # The sum of the peaks is an upper bound of what the processes held together.
        children = sum(resident_bytes(child.pid) for child in psutil.Process().children(recursive=True))
    measured = steps[case.warmup_steps :]
    total, active = active_parameters(config)
    return PeerResult(
        peer="samepath",
        versions=package_versions(("samepath", "torch")),
        case=case,
        step_s=tuple(step_s[case.warmup_steps :]),
        sampling_s=tuple(metrics["time/sampling_s"] for metrics in measured),
        learning_s=tuple(metrics["time/learning_s"] for metrics in measured),
        sampled_tokens=tuple(
            round(metrics["rollout/tokens_per_s"] * metrics["time/sampling_s"]) for metrics in measured
        ),
        learned_tokens=tuple(
            round(metrics["learner/tokens_per_s"] * metrics["time/learning_s"]) for metrics in measured
        ),
        idle_bytes=idle_bytes,
        peak_bytes=resident_bytes() + children,
        gap_nats=max(metrics["policy/gap_at_lag_0"] for metrics in measured),
        parameters=total,
        active_parameters=active,
    )


def main(case_file: str, result_file: str) -> None:
    """Read the case, write the result."""
    idle_bytes = resident_bytes(peak=False)
    case = Case.model_validate_json(Path(case_file).read_text())
    with tempfile.TemporaryDirectory() as folder:
        result = run_case(case, Path(folder), idle_bytes)
    Path(result_file).write_text(result.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
