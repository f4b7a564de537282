"""`samepath validate`: everything that can be checked before a run without starting it, each check with its outcome."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from samepath.model.files.config_file import read_config
from samepath.model.files.fp8_blocks import QUANTIZATION_KEY
from samepath.model.files.model_sizes import PublishedSizes
from samepath.model.files.published_sizes import KNOWN_TYPES, published_sizes
from samepath.model.network.placement import PlacementError, require
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rl.evaluation.sets import build_set, survey_set
from samepath.rl.learner.model_source import build_policy, check_expected, model_config, resolve_folder
from samepath.rl.learner.new_tokenizer import new_tokenizer
from samepath.rl.learner.policy_checks import check_experts, check_foreign_checkpoint, check_policy
from samepath.rl.learner.worked_answers import try_traces
from samepath.rl.recipe.model import NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.hub_folder import HubUnreachableError
from samepath.rl.tasks.row import Task
from samepath.rl.tasks.survey import survey
from samepath.rl.tasks.tasks import build_task
from samepath.rl.validate.environment_finding import first_conversation
from samepath.rl.validate.finding import Finding, Outcome, Validation
from samepath.rl.validate.folder_finding import folder_finding
from samepath.rl.validate.memory_findings import memory_findings
from samepath.rl.validate.memory_plan import PROMPT_TOKENS, memory_plan
from samepath.rl.validate.reward_findings import tried_rewards
from samepath.rl.validate.room import Room
from samepath.rl.validate.row_exactness import row_finding
from samepath.rl.validate.row_findings import READ_LIMIT_S, row_findings
from samepath.rl.validate.set_findings import described, set_findings
from samepath.rollout.capabilities import refusal
from samepath.rollout.engine_description import Capability
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.engine_settings import describe

MAX_BUILT_PARAMETERS = 2 * 10**9
"""A larger network is never built here; everything else is read from its configuration."""


class NotCheckedError(Exception):
    """A check that could not be made; the message is the reason."""


def validate_recipe(
    recipe: Recipe, recipe_dir: Path, progress: Callable[[str], None] = lambda text: None
) -> Validation:
    """Check task, model, tokenizer, prompts, rewards, worked answers, engine and memory; every problem is a finding, none is raised.

    `progress` hears how far the reading of rows is, if that takes long.
    """
    return _Checks(recipe=recipe, recipe_dir=recipe_dir, progress=progress).run()


@dataclass(slots=True, kw_only=True)
class _Checks:
    """Makes each check once; what one finds (task, sizes, tokenizer) later ones use."""

    recipe: Recipe
    recipe_dir: Path
    progress: Callable[[str], None]
    result: Validation = field(default_factory=Validation)
    task: Task | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    sizes: PublishedSizes | None = None
    tokenizer: Tokenizer | None = None
    prompt_tokens: int = PROMPT_TOKENS

    def run(self) -> Validation:
        """All checks, in the order of a run."""
        self._check("settings", lambda: f"every key of {self.recipe.name} is known and in its range")
        self.result.findings.append(folder_finding(self.recipe.run_dir))
        self._check("task", self._task)
        self._check("model", self._model)
        self._check("sizes", self._sizes)
        self._check("tokenizer", self._tokenizer)
        self._device()
        self._rows()
        if self._can_build():
            self._check("network", self._network)
        if not isinstance(self.recipe.task, EnvironmentTask) and self.recipe.task.chat.enabled:
            self._check("chat template", self._chat)
        self._check("prompts", self._prompts)
        for name in self.recipe.evaluation.sets:
            self._check(f"evaluation.sets.{name}", partial(self._set, name))
        if self.recipe.cold_start.steps:
            self._check("cold start", self._worked_answers)
        if isinstance(self.recipe.task, EnvironmentTask):
            self._check("environment", self._environment)
        else:
            self._check("reward", self._reward)
        self._engine()
        self._memory()
        return self.result

    def _check(self, name: str, look: Callable[[], str]) -> None:
        outcome: Outcome = "ok"
        try:
            detail = look()
        except (NotCheckedError, HubUnreachableError) as error:
            outcome, detail = "not checked", str(error)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            # What a run would stop at before any work; anything else is a defect of this package and keeps its traceback.
            outcome, detail = "wrong", str(error)
        self._add(name, outcome, detail)

    def _add(self, name: str, outcome: Outcome, detail: str) -> None:
        self.result.findings.append(Finding(name=name, outcome=outcome, detail=detail))

    def _task(self) -> str:
        task = build_task(self.recipe.task, self.recipe_dir)
        self.task = task
        task.check_datasets(self.recipe.rl.objective.kl.beta_by_dataset)
        rl, first = self.recipe.rl, task.held_out[0]
        epochs = f", rl.epochs={rl.epochs:g} are {rl.counted(len(task.train)).steps} steps" if rl.epochs else ""
        gold = f", gold answer {first.answer['answer']!r:.40}" if "answer" in first.answer else ""
        return (
            f"{task.name}: {len(task.train)} training and {len(task.held_out)} held-out rows{task.remarks}{epochs}; "
            f"first held-out prompt {first.text!r:.200}{gold}"
        )

    def _model(self) -> str:
        """Find the configuration; the weights are neither fetched nor built."""
        model = self.recipe.model
        if isinstance(model, NewModel):
            self.config = model_config(model, self.recipe_dir)
            return "built new from model.config"
        try:
            self.folder = resolve_folder(model.path, self.recipe_dir, weights=False)
        except HubUnreachableError:
            self.config = model.expected
            raise
        self.config = check_expected(model.expected, self.folder)
        quantised, stored = self.config.get(QUANTIZATION_KEY), ""
        if model.implementation == "own":
            read_config(self.folder / "config.json")
            stored = ", FP8 weights that are read as their values" if quantised else ""
        elif quantised:
            detail = (
                "quantised weights train with model.implementation=own alone; make a plain copy (`samepath convert FOLDER OUT`, if they are FP8 with a "
                "scale for each block) and give its path"
            )
            self._add("weights", "obstacle", detail)
        else:
            check_foreign_checkpoint(self.folder, self.recipe.rl, self.recipe.learner, self.recipe.engine)
        compared = f", equal to model.expected in {len(model.expected)} sizes" if model.expected else ""
        return f"{self.config.get('model_type')} in {self.folder}{compared}{stored}"

    def _sizes(self) -> str:
        if not self.config:
            raise NotCheckedError("config.json is not at hand and the recipe has no model.expected")
        if (model_type := self.config.get("model_type")) not in KNOWN_TYPES:
            raise NotCheckedError(
                f"parameters of model_type {model_type!r} cannot be counted here; memory is not estimated"
            )
        sizes = self.sizes = published_sizes(self.config)
        check_experts(sizes.num_experts if sizes.num_moe_layers else 0, self.recipe.learner)
        limit, what = self._room.limit
        if self.recipe.sampling.max_new_tokens >= limit:
            raise ValueError(
                f"sampling.max_new_tokens={self.recipe.sampling.max_new_tokens} leaves no room for a prompt in {what}. Lower it."
            )
        source = "" if self.folder is not None or isinstance(self.recipe.model, NewModel) else " (from model.expected)"
        moe = (
            f"{sizes.num_moe_layers} of them mixtures of {sizes.num_experts} experts"
            if sizes.num_moe_layers
            else "all dense"
        )
        return (
            f"{sizes.parameters:,} parameters, {sizes.active:,} active for a token, {sizes.num_layers} layers, {moe}, "
            f"{sizes.max_positions:,} positions{source}"
        )

    @property
    def _room(self) -> Room:
        return Room(engine=self.recipe.engine, max_positions=None if self.sizes is None else self.sizes.max_positions)

    def _network(self) -> str:
        """Build a small network whose weights are here, because some refusals need it (routers, heads, names of tensors)."""
        recipe = self.recipe
        shape = build_policy(recipe.model, self.recipe_dir, recipe.seed).shape
        check_policy(shape, recipe.rl, recipe.learner, recipe.model, recipe.engine)
        return f"built once: {len(shape.moe_layers)} mixture-of-experts layers, {len(shape.sparse_layers)} that select their keys"

    def _device(self) -> None:
        placement = self.recipe.model.placement
        try:
            require(placement)
        except PlacementError as error:
            self._add("device", "obstacle", f"this machine cannot run it: {error}")
        else:
            self._add("device", "ok", f"{placement.device}, {placement.dtype}, kernels {placement.backend}")

    def _rows(self) -> None:
        """On a CPU zero gap rests on the processor; transformers' network, or another in the engine, does not promise one."""
        model = self.recipe.model
        promised = model.implementation == "own" and not refusal(Capability.ZERO_GAP, self.recipe.engine)
        if model.placement.device != "cpu" or not promised:
            return
        threads, limit = sorted({1, self.recipe.rollout.threads}), self.recipe.rl.max_gap_at_lag_0
        if isinstance(model, NewModel):
            self.result.findings.append(row_finding(model.shape, threads, limit))
        elif self.folder is not None and self.result.is_ok("model"):
            config = read_config(self.folder / "config.json")
            self.result.findings.append(row_finding(config, threads, limit))

    def _can_build(self) -> bool:
        """Whether the network is small, needs no download, and has its device here."""
        if not self.result.is_ok("device"):
            return False
        small = self.sizes is not None and self.sizes.parameters <= MAX_BUILT_PARAMETERS
        here = self.folder is not None and any(self.folder.glob("*.safetensors"))
        return small and (here or isinstance(self.recipe.model, NewModel))

    def _tokenizer(self) -> str:
        model = self.recipe.model
        if isinstance(model, NewModel):
            if model.tokenizer is not None and self.task is None:
                raise NotCheckedError("the task is not at hand")
            self.tokenizer = new_tokenizer(self.recipe, self.task)
        elif self.folder is None:
            raise NotCheckedError("the checkpoint is not at hand")
        else:
            self.tokenizer = load_tokenizer(self.folder)
        known = self.tokenizer.vocab_size
        if self.sizes is not None and known > self.sizes.vocab_size:
            raise ValueError(f"the tokenizer has {known} ids, the model only {self.sizes.vocab_size}")
        return f"{known:,} ids, answers end with {self.tokenizer.end_token!r}"

    def _chat(self) -> str:
        assert not isinstance(self.recipe.task, EnvironmentTask)
        form = self.recipe.task.chat.form
        if self.tokenizer is None or form is None:
            raise NotCheckedError("the checkpoint's tokenizer is not at hand")
        ids = self.tokenizer.encode_chat("What is 1 + 1?", form)
        return f"a question becomes {''.join(self.tokenizer.token_texts(ids))!r}"

    def _prompts(self) -> str:
        if self.task is None or self.tokenizer is None:
            raise NotCheckedError(f"the {'task' if self.task is None else 'tokenizer'} is not at hand")
        if any(found.name == "chat template" and found.outcome == "wrong" for found in self.result.findings):
            raise NotCheckedError("the chat template does not work")
        found = survey(
            self.task,
            self.tokenizer,
            too_large=self._room.of(self.recipe.sampling.max_new_tokens, self.recipe.rl.group_size),
            limit_s=READ_LIMIT_S,
            progress=self.progress,
        )
        self.result.findings += row_findings(found, len(self.task.train))
        self.prompt_tokens = found.longest
        if isinstance(self.recipe.task, EnvironmentTask):
            # A context may grow by all that the model may draw, and by what tools and user say to it.
            grown = found.longest + self.recipe.task.episode.budgets.max_tokens
            self.prompt_tokens = int(min(grown, self._room.limit[0] - self.recipe.sampling.max_new_tokens))
        return f"{found.num_read} encoded, at most {found.longest} tokens and {self.recipe.sampling.max_new_tokens} of response"

    def _set(self, name: str) -> str:
        if self.task is None or self.tokenizer is None:
            raise NotCheckedError(f"the {'task' if self.task is None else 'tokenizer'} is not at hand")
        asked = build_set(self.recipe, name, self.task, self.recipe_dir)
        together = min(asked.num_samples, self.recipe.rl.group_size)
        found = survey_set(asked, self.tokenizer, self._room.of(asked.sampling.max_new_tokens, together))
        self.result.findings += set_findings(asked, found, self.recipe)
        return described(asked, found)

    def _worked_answers(self) -> str:
        cold_start = self.recipe.cold_start
        try_traces(cold_start, self.task, self.tokenizer)
        return f"{cold_start.steps} steps on {cold_start.traces}"

    def _reward(self) -> str:
        return tried_rewards(self.recipe.reward, self.task.held_out[0] if self.task is not None else None)

    def _environment(self) -> str:
        if self.task is None or self.tokenizer is None:
            raise NotCheckedError(f"the {'task' if self.task is None else 'tokenizer'} is not at hand")
        return first_conversation(self.task.held_out[0], self.tokenizer)

    def _engine(self) -> None:
        engine = self.recipe.engine
        try:
            describe(engine).require(engine)
        except EngineUnavailableError as error:
            self._add("engine", "obstacle", f"this machine cannot run it: {error}")
        else:
            self._add("engine", "ok", f"{engine.kind}, {engine.max_sequences} sequences at once")

    def _memory(self) -> None:
        if self.sizes is None:
            self._add("memory", "not checked", "the model's sizes are not known")
            return
        plan = self.result.memory = memory_plan(self.recipe, self.sizes, self.prompt_tokens)
        self.result.findings += memory_findings(self.recipe.model, self.recipe.engine, plan)
