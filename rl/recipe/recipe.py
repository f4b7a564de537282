"""The recipe: every setting of a run in one frozen tree, and the combinations that cannot work."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samepath.rewards.settings import RewardSettings
from samepath.rl.recipe.alerts import AlertSettings
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.checkpoint import CheckpointSettings
from samepath.rl.recipe.cluster import RaySettings
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.engine_demands import EngineUse, unmet_demands
from samepath.rl.recipe.evaluation import EvaluationSettings
from samepath.rl.recipe.faults import FaultSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.model import ModelSettings, NewModel
from samepath.rl.recipe.optimizer import OptimizerSettings
from samepath.rl.recipe.task import EnvironmentTask, TaskSettings
from samepath.rl.recipe.tracking import TrackingSettings
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_settings import EngineSettings, describe
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.sampling_settings import SamplingSettings


class Recipe(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*$", description="folder of the run below runs_dir, and its name in MLflow"
    )
    seed: int = Field(0, ge=0, description="everything random follows from it")
    runtime: Literal["ray", "inline"] = Field(
        "ray", description="actors on a Ray cluster, or the same objects in one process"
    )
    runs_dir: str = Field("runs", description="folder of all runs, relative to where the command is started")
    model: ModelSettings = Field(description="network and tokenizer")
    task: TaskSettings = Field(description="prompts")
    reward: RewardSettings = Field(
        default_factory=lambda: RewardSettings(), description="reward function, or named parts with weights"
    )
    sampling: SamplingSettings = Field(
        default_factory=lambda: SamplingSettings(), description="how responses are drawn"
    )
    engine: EngineSettings = Field(
        default_factory=BuiltinSettings, description="what samples; `engine: vllm` for short"
    )
    rollout: RolloutSettings = Field(default_factory=lambda: RolloutSettings(), description="rollout workers")
    cold_start: ColdStartSettings = Field(default_factory=lambda: ColdStartSettings(), description="supervised start")
    rl: AlgorithmSettings = Field(default_factory=lambda: AlgorithmSettings(), description="algorithm")
    optimizer: OptimizerSettings = Field(default_factory=lambda: OptimizerSettings(), description="optimiser of RL")
    learner: LearnerSettings = Field(default_factory=lambda: LearnerSettings(), description="learner")
    evaluation: EvaluationSettings = Field(
        default_factory=lambda: EvaluationSettings(), description="held-out accuracy"
    )
    checkpoint: CheckpointSettings = Field(default_factory=lambda: CheckpointSettings(), description="checkpoints")
    tracking: TrackingSettings = Field(default_factory=lambda: TrackingSettings(), description="metrics and rollouts")
    alerts: AlertSettings = Field(
        default_factory=lambda: AlertSettings(), description="what is said when the run's numbers go wrong"
    )
    ray: RaySettings = Field(default_factory=lambda: RaySettings(), description="cluster")
    faults: FaultSettings = Field(
        default_factory=lambda: FaultSettings(), description="what breaks on purpose, to see that the run survives it"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = list(self._impossible())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _impossible(self) -> list[str]:
        """Combinations that would train on wrong data or not at all."""
        problems = []
        if not self.reward.parts and not isinstance(self.task, EnvironmentTask):
            problems.append(
                "reward must name a function that judges responses, such as samepath.rewards.math:answer; only task.kind: environment judges "
                "by itself"
            )
        if self.reward.parts and isinstance(self.task, EnvironmentTask):
            problems.append(
                f"reward.parts must be left out with task.kind: environment, which judges by itself; got {', '.join(self.reward.parts)}. A "
                "function alone is an environment too: samepath.rollout.environments.reward:RewardEnvironment"
            )
        if isinstance(self.model, NewModel) and bool(self.model.alphabet) == isinstance(self.task, EnvironmentTask):
            problems.append(
                "model.tokenizer, learned from worked conversations, is what a new model needs for task.kind: environment, and model.alphabet "
                f"for any other; got {'alphabet' if self.model.alphabet else 'tokenizer'} with kind {self.task.kind}"
            )
        if self.rl.trains and self.sampling.temperature == 0:
            problems.append("sampling.temperature must be above 0 for training: all samples of a group would be equal")
        if (
            self.sampling.truncates
            and self.rl.keep_sampling_mask == "off"
            and "keep_sampling_mask" not in self.rl.model_fields_set
        ):
            problems.append("sampling truncates and rl.keep_sampling_mask is off without the recipe saying so")
        if self.checkpoint.keep_sampled and not self.rl.max_weight_lag:
            problems.append(
                "checkpoint.keep_sampled keeps groups that were sampled ahead of the learner; with rl.max_weight_lag=0 there are none. Leave it out, or "
                "set rl.max_weight_lag=1 or more."
            )
        if self.rl.objective.surrogate.startswith("__main__:") and (self.runtime, self.learner.ranks) != ("inline", 1):
            problems.append(
                f"rl.objective.surrogate {self.rl.objective.surrogate} stands in this process alone; got runtime {self.runtime} and learner.ranks="
                f"{self.learner.ranks}. Set runtime=inline and learner.ranks=1, or move it into a module."
            )
        problems += unmet_demands(
            EngineUse(
                engine=self.engine,
                runtime=self.runtime,
                model=self.model,
                rl=self.rl,
                sampling=self.sampling,
                evaluations=self.evaluation.samplings(self.sampling),
                conversations=isinstance(self.task, EnvironmentTask),
                beside=self.rollout.own_process,
            )
        )
        problems += self._impossible_deltas()
        problems += self._impossible_process()
        problems += describe(self.engine).problems(self.engine, self.rl.group_size, self.model.placement)
        if isinstance(self.model, NewModel):
            shape = self.model.shape
            if self.rl.keep_routing != "off" and shape.n_routed_experts and not shape.moe_layers:
                problems.append(
                    "rl.keep_routing needs a mixture-of-experts layer: every layer is dense (model.config.first_k_dense_replace)"
                )
            # A set that does not say how long its responses may be has the training's limit.
            for name, sampling in {**self.evaluation.samplings(self.sampling), "sampling": self.sampling}.items():
                if sampling.max_new_tokens >= shape.max_position_embeddings and name != "evaluation":
                    problems.append(
                        f"{name}.max_new_tokens={sampling.max_new_tokens} leaves no room for a prompt in "
                        f"model.config.max_position_embeddings={shape.max_position_embeddings}"
                    )
        return [*problems, *self._impossible_for_the_implementation(), *self._impossible_faults()]

    def _impossible_process(self) -> list[str]:
        """A process beside the learner's that is there anyway."""
        if not self.rollout.own_process:
            return []
        if self.runtime == "ray":
            return [
                "rollout.own_process is about runtime: inline; under runtime: ray every worker has a process, and rollout.gpus says on what GPU. Leave it out."
            ]
        if describe(self.engine).own_process:
            return [f"engine.kind {self.engine.kind} has a process of its own anyway: leave rollout.own_process out."]
        return []

    def _impossible_deltas(self) -> list[str]:
        """Weights that cannot be changed number by number."""
        if not self.learner.weight_deltas:
            return []
        if (self.runtime, self.engine.kind) != ("ray", "builtin"):
            return [
                f"learner.weight_deltas needs runtime: ray and engine.kind: builtin, whose weights can be changed number by number; got {self.runtime} "
                f"and {self.engine.kind}. Leave it out: inline no byte is sent, and vLLM takes whole tensors."
            ]
        dtype = describe(self.engine).computes_on(self.engine, self.model.placement)[1]
        if dtype != self.model.dtype:
            return [
                f"learner.weight_deltas sends numbers of model.dtype={self.model.dtype}, and the engine holds them in {dtype}. Leave it out, or engine.dtype."
            ]
        return []

    def _impossible_for_the_implementation(self) -> list[str]:
        """Options that the model's implementation does not have."""
        learner, model, problems = self.learner, self.model, []
        if model.placement.problem is not None:
            problems.append(model.placement.problem)
        if model.device == "cuda" and learner.ranks > 1 and self.runtime == "ray" and self.ray.learner_gpus < 1:
            problems.append(
                f"learner.ranks={learner.ranks} needs a whole GPU for each rank, because NCCL takes no two ranks on one; got "
                f"ray.learner_gpus={self.ray.learner_gpus:g}. Set ray.learner_gpus=1, or learner.ranks=1."
            )
        if learner.expert_parallel and learner.shard != "full":
            problems.append(
                "learner.expert_parallel spreads the experts of ranks that share the model; got learner.shard=none. Set learner.shard=full, or leave it out."
            )
        if model.implementation == "own":
            for name, used in (
                ("precision", learner.precision != "fp32"),
                ("lora", learner.lora.enabled),
            ):
                if used:
                    problems.append(f"learner.{name} needs model.implementation: transformers")
            return problems
        if learner.expert_parallel:
            problems.append(
                "learner.expert_parallel needs model.implementation: own; a transformers model runs its experts by itself. Set it, or leave "
                "expert_parallel out: learner.shard=full gathers them layer by layer."
            )
        if (model.device, model.dtype, model.batch_invariant) != ("cpu", "float32", True):
            problems.append(
                "model.device, model.dtype and model.batch_invariant place the own network; a transformers model goes where accelerate puts it, in "
                "learner.precision. Leave them out, or set model.implementation=own."
            )
        if learner.indexer == "trained" or self.cold_start.dense_warmup_steps:
            problems.append(
                "learner.indexer: trained and cold_start.dense_warmup_steps need an indexer that learns: model.implementation: own"
            )
        return problems

    def _impossible_faults(self) -> list[str]:
        """Planned faults of something that the run does not have, or cannot reach."""
        faults, ray = self.faults, self.runtime == "ray"
        apart = ray or describe(self.engine).own_process or self.rollout.own_process
        needs = {
            "worker_killed": (
                apart,
                "a rollout worker beside the run's own process: runtime: ray, rollout.own_process, or an engine such as vLLM",
            ),
            "worker_stopped": (
                apart,
                "a rollout worker beside the run's own process: runtime: ray, rollout.own_process, or an engine such as vLLM",
            ),
            "rank_killed": (
                ray or self.learner.ranks > 1,
                "a rank beside the run's own process: runtime: ray, or learner.ranks of 2",
            ),
            "reward_child_killed": (bool(self.reward.parts), "a reward function in reward.parts"),
            "nan_reward": (bool(self.reward.parts), "a reward function in reward.parts"),
            "nan_logprob": (self.rl.trains, "a run that trains"),
            "store_gone": (self.tracking.kind == "mlflow", "tracking.kind: mlflow"),
        }
        problems = [
            f"faults.{name} needs {need}"
            for name in faults.named
            for there, need in [needs.get(name, (True, ""))]
            if not there
        ]
        if faults.planned and ray and self.ray.address != "local":
            problems.append(
                f"faults are injected into processes of this machine: ray.address must be local; got {self.ray.address}"
            )
        if ray and (file := faults.learners_file()):
            problems.append(
                f"faults.at: {file} is written by the learner's process, which plans no faults. Set runtime: inline, or kill the learner with "
                "rank_killed."
            )
        never = ("sampling", "scoring") if self.rl.max_weight_lag else ("waiting",)
        if lost := [one.during for one in faults.at if one.during in never]:
            problems.append(
                f"faults.at: during={lost[0]} never comes with rl.max_weight_lag={self.rl.max_weight_lag}; leave it out for the step's beginning"
            )
        if late := [one.fault for one in faults.at if one.step > self.rl.steps and not self.rl.epochs]:
            problems.append(f"faults.at: {late[0]} must come in one of the rl.steps={self.rl.steps} steps")
        return problems

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.runs_dir) / self.name
