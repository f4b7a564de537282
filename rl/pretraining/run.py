"""A run on text from recipe to summary: its folder, measurements before and after, steps with checkpoints between them; resumable at any moment."""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from samepath.model.durable_file import replace_file
from samepath.model.files.checkpoint import stored_checkpoint
from samepath.model.files.config_file import CONFIG_FILE, read_config
from samepath.model.files.policy_files import file_tensors, load_policy
from samepath.model.json_file import write_json
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import place, require
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rl.interruption import Interruption
from samepath.rl.learner.checkpoint_writer import CheckpointWriter
from samepath.rl.learner.checkpoints import checkpoint_folder, checkpoint_of_step, latest_checkpoint
from samepath.rl.learner.model_source import check_expected, resolve_folder
from samepath.rl.learner.snapshot import Snapshot, in_host_memory
from samepath.rl.machine import collect_environment
from samepath.rl.pretraining.corpus import Corpus, load_corpus
from samepath.rl.pretraining.documents import TextError, documents
from samepath.rl.pretraining.measure import SparseMeasure
from samepath.rl.pretraining.needles import check_needles
from samepath.rl.pretraining.pictures import draw_course, draw_measure
from samepath.rl.pretraining.ranks import TrainerRanks
from samepath.rl.pretraining.suite import measure_suite
from samepath.rl.pretraining.text_folder import TextSource, refuse_begun
from samepath.rl.pretraining.trainer import check_stage
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.text import TextRecipe
from samepath.rl.report.progress import ProgressDisplay, summary_table
from samepath.rl.report.report import REPORT_FILE, write_text_report
from samepath.rl.run_folder import claimed
from samepath.rl.run_state import METRICS_FILE, TEXT_RECIPE_FILE, RunState, metrics_bytes
from samepath.rl.tracking.sink import RunStart, RunStatus
from samepath.rl.tracking.tracker import Tracker, build_tracker

SUMMARY_FILE = "summary.json"
PICTURES = "pictures"
"""Folder of pictures in a run's folder."""
TOKENS = "tokens"
"""Folder of tokenised text, below runs_dir."""


@dataclass(slots=True, kw_only=True)
class _Run:
    """One start of a run."""

    recipe: TextRecipe
    state: RunState
    ranks: TrainerRanks
    tokenizer: Tokenizer
    corpus: Corpus
    tracker: Tracker
    display: ProgressDisplay
    writer: CheckpointWriter
    first_step: int
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def model(self) -> CausalLM:
        """What is measured and saved."""
        return self.ranks.trainer.model

    def run(self) -> SparseMeasure:
        """Measure, train, measure; returns the last measurement."""
        stage, done = self.recipe.stage, self.first_step
        if not done:
            self._measured(0)
        self.display.start_clock()
        try:
            for step in range(self.first_step, stage.steps):
                self.interruption.hold()
                sequences = self.corpus.batch(self.recipe.seed, step, stage.sequences_per_step)
                metrics = dict(self.ranks.step(sequences))
                done = step + 1
                if stage.measure_every and done % stage.measure_every == 0 and done < stage.steps:
                    metrics |= self._measure().metrics(self.model.config.index_topk)
                self.tracker.log_metrics(done, metrics)
                self.display.update(done, metrics)
                if self.recipe.checkpoint.every and done % self.recipe.checkpoint.every == 0:
                    self._save(done)
                self.interruption.release()
        except KeyboardInterrupt:
            if not self.interruption.held:
                self.display.message(f"interrupted: writing a checkpoint of step {done}")
                self._save(done)
            raise
        self._save(done)
        return self._measured(done)

    def _measured(self, step: int) -> SparseMeasure:
        """Measure outside the steps, and keep what it gave."""
        self.display.phase("measuring")
        found = self._measure()
        metrics = found.metrics(self.model.config.index_topk)
        self.tracker.log_metrics(step, metrics)
        self.display.message(
            f"step {step}: perplexity {metrics['sparse/dense_perplexity']:.3f} over all keys, {metrics['sparse/perplexity']:.3f} over the selected; "
            f"these hold {metrics['sparse/recall']:.1%} of attention, {metrics['sparse/recall_min']:.1%} in the worst layer"
        )
        return found

    def _measure(self) -> SparseMeasure:
        return measure_suite(self.model, self.tokenizer, self.corpus, self.recipe.stage)

    def _save(self, step: int) -> None:
        """Write the checkpoint of a step, and wait for it: text needs no overlap with a sampler."""
        if step in self.state.marks:
            return
        folder = checkpoint_folder(self.recipe.run_dir, step)
        # On the disk before the checkpoint is, which may be whole when the process ends here.
        self.state.begin(self.recipe.run_dir, step, None)
        self.state.save(self.recipe.run_dir)
        self.writer.begin(folder, lambda: self._snapshot(step).write)
        self.writer.whole(wait=True)
        self.state.whole(step, self.recipe.checkpoint.keep)
        self.state.save(self.recipe.run_dir)
        self.tracker.log_checkpoint(step, folder)

    def _snapshot(self, step: int) -> Snapshot:
        held, ready = in_host_memory(
            {"weights": file_tensors(self.model), "state": self.ranks.trainer.optimizer.state()}, copied=False
        )
        return Snapshot(
            policy=self.model,
            tokenizer=self.tokenizer,
            weights=held["weights"],
            state=held["state"],
            step=step,
            version=step,
            ready=ready,
        )


def start_text_run(recipe: TextRecipe, recipe_dir: Path) -> dict[str, Any]:
    """Run a recipe from its beginning; returns the summary.

    Raises ValueError or FileNotFoundError for what is wrong with recipe, model or text before the run's folder is touched, and RunFolderError if
    that holds a run already.
    """
    refuse_begun(recipe.run_dir)
    state = RunState(recipe_dir=str(recipe_dir.resolve()), phase="training")
    folder = resolve_folder(recipe.model.path, recipe_dir)
    check_expected(recipe.model.expected, folder)
    return _run(recipe, state, folder, 0)


def check_text_run(recipe: TextRecipe, recipe_dir: Path) -> list[str]:
    """What `samepath validate` says of a recipe; reads configuration, the weights' names and shapes, and the first document.

    Raises ValueError or FileNotFoundError as a run would.
    """
    folder = resolve_folder(recipe.model.path, recipe_dir, weights=False)
    check_expected(recipe.model.expected, folder)
    # Of a hub name's folder the configuration may be all that is here.
    has_weights = any(folder.glob("*.safetensors*"))
    config = stored_checkpoint(folder)[0] if has_weights else read_config(folder / CONFIG_FILE)
    check_stage(config, recipe.stage, recipe.text.length)
    check_needles(recipe.stage.needles, load_tokenizer(folder))
    first = next(documents(recipe.text, recipe_dir), None)
    if first is None:
        raise TextError("text has no document: every text is blank, or there is none")
    return [
        f"model: {config.model_type}, {config.num_hidden_layers} layers, {config.index_n_heads} indexer heads, {config.index_topk} keys selected of "
        f"{recipe.text.length}",
        f"text: the first document has {len(first):,} characters",
    ]


def measure_source(source: TextSource) -> tuple[SparseMeasure, int]:
    """(what `samepath eval --suite sparse` says of a checkpoint, keys that its model selects). Raises ValueError or FileNotFoundError."""
    recipe = source.recipe
    config = read_config(source.checkpoint / CONFIG_FILE)
    check_stage(config, recipe.stage, recipe.text.length)
    tokenizer = load_tokenizer(source.checkpoint)
    check_needles(recipe.stage.needles, tokenizer)
    corpus = load_corpus(recipe.text, tokenizer, source.recipe_dir, Path(recipe.runs_dir) / TOKENS, lambda _: None)
    model = load_policy(source.checkpoint, "own", recipe.model.backend)
    assert isinstance(model, CausalLM)
    placed = place(model, recipe.model.placement)
    return measure_suite(placed, tokenizer, corpus, recipe.stage), config.index_topk


def resume_text_run(recipe: TextRecipe, run_dir: Path, step: int | None = None) -> dict[str, Any]:
    """Go on from the newest whole checkpoint, or that of `step`, or begin again where there is none.

    Raises RunStateError, CheckpointError, or ValueError for text that is not what the run began with.
    """
    state = RunState.load(run_dir)
    found = checkpoint_of_step(run_dir, step) if step is not None else latest_checkpoint(run_dir)
    if found is None:
        folder, done = resolve_folder(recipe.model.path, Path(state.recipe_dir)), 0
    else:
        folder, done = found
        state.rewind(done)
    state.phase = "training"
    if recipe.stage.steps < done:
        raise ValueError(f"stage.steps must be at least the {done} steps that are done; got {recipe.stage.steps}")
    keep_bytes = state.marks[done].metrics_bytes if found else 0
    return _run(recipe, state, folder, done, keep_bytes)


def _run(recipe: TextRecipe, state: RunState, folder: Path, first_step: int, keep_bytes: int = 0) -> dict[str, Any]:
    require(recipe.model.placement)
    check_stage(stored_checkpoint(folder)[0], recipe.stage, recipe.text.length)
    tokenizer = load_tokenizer(folder)
    check_needles(recipe.stage.needles, tokenizer)
    tokens = Path(recipe.runs_dir) / TOKENS
    corpus = load_corpus(recipe.text, tokenizer, Path(state.recipe_dir), tokens, _say)
    with contextlib.ExitStack() as ended:
        ranks = TrainerRanks(recipe, Path(state.recipe_dir), folder, resumed=bool(first_step))
        ended.callback(ranks.close)
        ended.enter_context(claimed(recipe.run_dir))
        replace_file(recipe.run_dir / TEXT_RECIPE_FILE, dump_recipe(recipe))
        if metrics_bytes(recipe.run_dir) > keep_bytes:
            os.truncate(recipe.run_dir / METRICS_FILE, keep_bytes)
        said = f"text: {corpus.documents:,} documents, {len(corpus.tokens):,} tokens, {corpus.num_trained:,} sequences of {corpus.length} to train on"
        return _tracked(recipe, state, _Parts(ranks=ranks, tokenizer=tokenizer, corpus=corpus), first_step, said)


def _say(text: str) -> None:
    """At once: before the display is there, and tokenising may take long."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a run works with."""

    ranks: TrainerRanks
    tokenizer: Tokenizer
    corpus: Corpus


def _tracked(recipe: TextRecipe, state: RunState, parts: _Parts, first_step: int, said: str) -> dict[str, Any]:
    """The run with its tracker and display around it."""
    started, spent, run_dir = time.monotonic(), state.seconds, recipe.run_dir
    tracker = build_tracker(recipe.tracking, run_dir)
    state.run_id = tracker.start(
        RunStart(
            run_name=recipe.name,
            recipe=recipe.model_dump(mode="json"),
            recipe_yaml=dump_recipe(recipe),
            environment=collect_environment(),
            run_id=state.run_id,
        )
    )
    state.save(run_dir)
    status: RunStatus = "FAILED"
    try:
        every = recipe.tracking.log_every
        with ProgressDisplay(total_steps=recipe.stage.steps, done_steps=first_step, every=every) as display:
            for text in (f"run folder: {run_dir}", said):
                display.message(text)
            run = _Run(
                recipe=recipe,
                state=state,
                ranks=parts.ranks,
                tokenizer=parts.tokenizer,
                corpus=parts.corpus,
                tracker=tracker,
                display=display,
                writer=CheckpointWriter(asynchronous=False, keep=recipe.checkpoint.keep),
                first_step=first_step,
            )
            with run.interruption.caught():
                found = run.run()
        state.seconds, state.phase = spent + time.monotonic() - started, "finished"
        state.save(run_dir)
        summary = {
            "name": recipe.name,
            "stage": recipe.stage.kind,
            "steps": recipe.stage.steps,
            "checkpoint": str(checkpoint_folder(run_dir, recipe.stage.steps)),
            "seconds": round(state.seconds, 1),
            **found.metrics(parts.ranks.trainer.model.config.index_topk),
        }
        write_json(run_dir / SUMMARY_FILE, {**summary, **found.by_layer()})
        draw_measure(found, run_dir / PICTURES)
        draw_course(run_dir / METRICS_FILE, run_dir / PICTURES)
        write_text_report(run_dir, recipe.stage.steps, state.seconds)
        for name in (SUMMARY_FILE, PICTURES, REPORT_FILE):
            tracker.log_artifact(run_dir / name)
        summary_table(summary)
        status = "FINISHED"
        return summary
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
