"""The learner: policy, reference, optimiser, checkpoints. The same object runs in the driver's process, as a Ray actor, or as one rank of several."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from samepath.model.collectives import measured
from samepath.model.files.policy_files import file_tensors, load_policy, policy_tensors, write_settings
from samepath.model.json_file import read_json, write_json
from samepath.model.manifest import require_whole
from samepath.model.policy import Policy
from samepath.model.text.renderer import Renderer
from samepath.model.text.tokenizer import load_tokenizer
from samepath.model.transformers.lora import adapter_tensors, add_adapters, load_adapters, share_weights
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.gpu import GpuMeter
from samepath.rl.diagnostics.memory import resident_gib
from samepath.rl.learner.checkpoint_writer import CheckpointWriter
from samepath.rl.learner.checkpoints import STEP_FILE, checkpoint_folder
from samepath.rl.learner.cold_start import ColdStart
from samepath.rl.learner.master_weights import as_held
from samepath.rl.learner.model_source import build_model, resolve_folder
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.placing import placed, spread
from samepath.rl.learner.policy_checks import check_foreign_checkpoint, check_policy
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.shard_files import Rest, ShardSnapshot, holds_shards, read_shards, shard_snapshot
from samepath.rl.learner.sharded_runner import runner_of
from samepath.rl.learner.sharding import named_weights, write_whole
from samepath.rl.learner.snapshot import Snapshot, in_host_memory, read_state
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.learner.worked_batches import WorkedBatches
from samepath.rl.recipe.model import CheckpointModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.pool.worker import gpu_statistics, peak_memory_bytes
from samepath.rollout.weights.bucket import Bucket
from samepath.rollout.weights.changes import LastVersion
from samepath.rollout.weights.mark import Header, header
from samepath.rollout.weights.outgoing import Outgoing
from samepath.rollout.weights.publication import Publication


class Learner:
    """Owns the weights that are trained. `version` counts rollout batches learned from.

    Of several ranks each holds one, and all take part in `cold_start`, `start_rl`, `update` and `advance`; rank 0 alone writes files and
    gives weights.
    """

    def __init__(
        self, recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None, ranks: Ranks = ALONE
    ) -> None:
        torch.set_num_threads(1)
        self._recipe, self._recipe_dir, self._run_dir = recipe, recipe_dir, run_dir
        self._ranks = ranks
        self.version = 0
        self._last_version = LastVersion() if recipe.learner.weight_deltas else None
        self._saved = resume_from
        self._writer = CheckpointWriter(asynchronous=recipe.checkpoint.asynchronous, keep=recipe.checkpoint.keep)
        if resume_from is None:
            if isinstance(recipe.model, CheckpointModel) and recipe.model.implementation == "transformers":
                folder = resolve_folder(recipe.model.path, recipe_dir)
                check_foreign_checkpoint(folder, recipe.rl, recipe.learner, recipe.engine)
            model, self._tokenizer = build_model(recipe, recipe_dir)
        else:
            require_whole(self.reference_dir)
            # A checkpoint holds the merged weights; adapters continue from the frozen ones that they were added to. Shards are filled in below.
            first = recipe.learner.lora.enabled or holds_shards(resume_from)
            source = self.reference_dir if first else resume_from
            model, self._tokenizer = self._load(source), load_tokenizer(resume_from)
        check_policy(model.shape, recipe.rl, recipe.learner, recipe.model, recipe.engine)
        self._model = placed(model, recipe, trained=True)
        if recipe.learner.shard == "full":
            ranks.open_files(recipe.learner.update_timeout_s)
        self._cold_start: ColdStart | None = None
        self._updater: PolicyUpdater | None = None
        self._optimizer: Optimizer | None = None
        if resume_from is not None:
            self._begin_rl()
            if resume_from.resolve() != self.reference_dir.resolve():
                self._restore(resume_from)

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]:
        """Supervised steps `first … first + count − 1`; returns each step's metrics."""
        if self._cold_start is None:
            task = build_task(self._recipe.task, self._recipe_dir)
            settings, learner = self._recipe.cold_start, self._recipe.learner
            spread(self._model, self._recipe, self._ranks, trained=True)
            self._cold_start = ColdStart(
                self._model,
                WorkedBatches(self._tokenizer, task, settings, self._recipe.seed, renderer=self._renderer()),
                settings,
                learner,
                runner_of(self._ranks, self._model, None, learner, train_indexer=True),
            )
        with measured() as collectives:
            metrics = [self._cold_start.step(step) for step in range(first, first + count)]
            self._require_equal(f"cold-start step {first + count - 1}")
        shared = self._ranks.collective_metrics("cold_start", collectives, count)
        return [{**one, **shared} for one in metrics]

    def _renderer(self) -> Renderer | None:
        """What writes the conversations of an environment."""
        task = self._recipe.task
        return renderer_of(self._tokenizer, task.episode.form) if isinstance(task, EnvironmentTask) else None

    def start_rl(self) -> None:
        """End the cold start: freeze a copy of the policy as the reference and write it as the first checkpoint."""
        self._cold_start = None
        self._ranks.together(lambda: write_whole(self._model, self._tokenizer, self.reference_dir, self._ranks))
        self._begin_rl()

    @property
    def reference_dir(self) -> Path:
        """Folder of the frozen reference policy."""
        return self._run_dir / "reference"

    def update(self, batch: TrainBatch) -> UpdateReport:
        """All updates on one rollout batch; afterwards the version is one higher."""
        if self._updater is None or self._optimizer is None:
            raise RuntimeError("start_rl must come before the first update")
        meter = GpuMeter(self._ranks.size)
        with measured() as collectives:
            with meter.measured(self._model, sum(len(entry.segment.token_ids) - 1 for entry in batch.sequences)):
                report = self._updater.run(batch, self.version, self._optimizer)
            self._require_equal(f"the updates of version {self.version}")
        report.metrics.update(meter.metrics)
        report.metrics.update(self._ranks.collective_metrics("learner", collectives))
        report.metrics["memory/learner_gib"] = resident_gib()
        self.version += 1
        return report

    def _require_equal(self, after: str) -> None:
        """Hold all ranks to the same weights."""
        whole = not isinstance(self._model, FSDPModule)
        self._ranks.require_equal(
            f"weights after {after}", list(self._model.parameters() if whole else self._model.buffers())
        )

    def advance(self) -> None:
        """Count a rollout batch that gave nothing to learn from, so that versions and steps stay together."""
        self.version += 1

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights under their published names, one after the other: views where they can be, so whoever keeps one copies it.

        Of shards a layer is gathered at a time, in step on all ranks, each of which takes all; what is given is a copy.
        """
        if isinstance(self._model, FSDPModule):
            return ((name, tensor.clone()) for name, tensor in named_weights(self._model))
        return ((name, tensor.detach()) for name, tensor in policy_tensors(self._model).items())

    def weights(self) -> Publication:
        """The weights where they stand, for a pool of this process; of shards copies, on rank 0."""
        started = time.perf_counter()
        tensors: dict[str, Tensor] = {}
        if self._ranks.rank > 0 and isinstance(self._model, FSDPModule):
            deque(named_weights(self._model), 0)
        else:
            tensors = dict(self.named_weights())
        head = header(self.version, tensors)
        return Publication(
            version=self.version,
            header=head,
            fingerprint=head.fingerprint,
            tensors=tensors,
            policy=None if isinstance(self._model, FSDPModule) else self._model,
            bucket_bytes=self._recipe.learner.weight_bucket_bytes,
            seconds=time.perf_counter() - started,
        )

    def published(self) -> Iterator[Bucket | Header]:
        """The weights bucket by bucket, for an object store that takes each before the next is made, and last what is known of them all.

        Other ranks that hold shards call `weights` meanwhile.
        """
        outgoing = Outgoing(self.named_weights(), self._recipe.learner.weight_bucket_bytes, self._last_version)
        yield from outgoing
        yield outgoing.header(self.version)

    def save(self, step: int, best: int | None = None) -> Path:
        """Write `checkpoints/step-…` whole or not at all, then drop the oldest beyond `checkpoint.keep`, but that of step `best`; returns its folder.

        With `checkpoint.asynchronous` this returns as soon as weights and optimiser state are copied, and the rest is written while training goes
        on; a save before that one is waited for. A step that is saved already stays as it is: what an interrupted update has left must
        not come into it. Raises CheckpointError if this or the save before cannot be written.
        """
        folder = checkpoint_folder(self._run_dir, step)
        if folder != self._saved:
            kept = None if best is None else checkpoint_folder(self._run_dir, best)
            if self._recipe.learner.shard == "none":
                self._writer.begin(folder, lambda: self._snapshot(step).write, kept)
            elif self._ranks.rank == 0:
                self._writer.begin(folder, lambda: self._shard_snapshot(step).write, kept)
            else:
                self._writer.take_part(lambda: self._shard_snapshot(step).take_part)
            self._saved = folder
        return folder

    def saved(self, step: int, *, wait: bool) -> bool:
        """Whether the checkpoint of `step`, the newest that was begun, is whole on the disk. Raises CheckpointError if it cannot be written."""
        return self._writer.whole(wait=wait) and self._saved == checkpoint_folder(self._run_dir, step)

    def statistics(self) -> dict[str, float]:
        """Parameters, `peak_bytes` of this process, and of its GPU's memory if it computes there."""
        return {
            "parameters": float(sum(p.numel() for p in self._model.parameters())),
            "peak_bytes": float(peak_memory_bytes()),
            **gpu_statistics(self._recipe.model.device),
        }

    def _snapshot(self, step: int) -> Snapshot:
        state = None
        if self._optimizer is not None:
            state = {**self._optimizer.state(), "adapters": adapter_tensors(self._model)}
        held, ready = in_host_memory(
            {"weights": file_tensors(self._model), "state": state}, copied=self._recipe.checkpoint.asynchronous
        )
        return Snapshot(
            policy=self._model,
            tokenizer=self._tokenizer,
            weights=held["weights"],
            state=held["state"],
            step=step,
            version=self.version,
            ready=ready,
        )

    def _shard_snapshot(self, step: int) -> ShardSnapshot:
        model, lora, version = self._recipe.model, self._recipe.learner.lora, self.version

        def write(folder: Path) -> None:
            write_settings(self._model, folder)
            self._tokenizer.save(folder)
            write_json(folder / STEP_FILE, {"step": step, "version": version})

        said = {"implementation": model.implementation, "dtype": model.dtype}
        rest = Rest(said={**said, "lora": lora.model_dump() if lora.enabled else None}, write=write)
        copied = self._recipe.checkpoint.asynchronous
        return shard_snapshot(self._ranks, self._model, self._optimizer, copied=copied, rest=rest)

    def _load(self, folder: Path) -> Policy:
        return load_policy(folder, self._recipe.model.implementation, self._recipe.model.backend)

    def _begin_rl(self) -> None:
        rl, learner = self._recipe.rl, self._recipe.learner
        reference = None
        if rl.objective.kl.needs_reference:
            reference = placed(self._load(self.reference_dir), self._recipe, trained=False).requires_grad_(False)
        if learner.lora.enabled:
            if reference is not None:
                share_weights(reference, self._model)
            if isinstance(self._model, FSDPModule):
                # Adapters must be there before the layers are spread; the cold start's weights are the reference's.
                self._model = placed(self._load(self.reference_dir), self._recipe, trained=True)
            add_adapters(self._model, learner.lora, self._recipe.seed)
        spread(self._model, self._recipe, self._ranks, trained=True)
        if reference is not None:
            spread(reference, self._recipe, self._ranks, trained=False)
        for parameter in self._model.indexer_parameters():
            parameter.requires_grad_(learner.indexer == "trained")
        self._optimizer = Optimizer(
            self._model,
            self._recipe.optimizer,
            total_updates=rl.steps * rl.updates_per_rollout,
            indexer_lr_scale=learner.indexer_lr_scale,
        )
        self._updater = PolicyUpdater(self._model, reference, rl, learner, self._ranks)

    def _restore(self, folder: Path) -> None:
        assert self._optimizer is not None
        if holds_shards(folder):
            read_shards(folder, self._model, self._optimizer)
        else:
            state = read_state(folder)
            self._optimizer.restore(state)
            if self._recipe.learner.lora.enabled:
                held = adapter_tensors(self._model)
                load_adapters(
                    self._model, {name: as_held(one, held.get(name, one)) for name, one in state["adapters"].items()}
                )
        self.version = int(read_json(folder / STEP_FILE)["version"])
