"""TRL's side of the benchmark: GRPOTrainer with generation by transformers, on a mixture-of-experts model of equal active size.

Run in a process of its own: `python -m benchmarks.trl case.json result.json`. TRL's generation pads every batch to its longest
response and its learner trains on the padded rows; both are left as they are. Axes: B samples of a step, T response positions.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainerCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from benchmarks.case import ALPHABET, Case, PeerResult, prompt_texts, resident_bytes, response_lengths
from benchmarks.reward import digit_share
from samepath.model.text.tokenizer import START, character_tokenizer
from samepath.rl.machine import package_versions

WIDTH, LAYERS, HEADS, HEAD_WIDTH, EXPERTS, CHOSEN = 128, 4, 4, 32, 8, 2
EXPERT_WIDTH = 104
"""Gives 591,000 active parameters, where Samepath's model has 581,000."""


def peer_config(vocab_size: int, end_id: int) -> Any:
    """A Qwen3-MoE network with the width, depth and experts of Samepath's model."""
    return Qwen3MoeConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_WIDTH,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=EXPERT_WIDTH,
        norm_topk_prob=True,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )


class ForcedEnd:
    """Bans the end token before each sample's length and forces it there; finished samples are padded by `generate` itself."""

    def __init__(self, lengths_B: Tensor, prompt_tokens: int, end_id: int) -> None:
        self.lengths_B, self.prompt_tokens, self.end_id = lengths_B, prompt_tokens, end_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, V]` of the next token. They are copied, because `generate` may hand out the raw logits themselves."""
        last_B = self.lengths_B == input_ids.shape[1] - self.prompt_tokens + 1
        scores = scores.clone()
        scores[:, self.end_id] = -torch.inf
        scores[last_B] = -torch.inf
        scores[last_B, self.end_id] = 0.0
        return scores


class Meter:
    """Takes the times inside a trainer by wrapping its methods, forces the lengths, and measures the gap in a step of its own."""

    def __init__(self, case: Case, trainer: Any, end_id: int) -> None:
        self.case, self.end_id = case, end_id
        self.generation_s: list[float] = []
        self.reward_s: list[float] = []
        self.gap_nats = float("nan")
        self._logits_T: tuple[Tensor, ...] = ()
        self._trainer, self._generate = trainer, trainer.model.generate
        self._single_turn, self._rewards = trainer._generate_single_turn, trainer._calculate_rewards
        self._score_completions = trainer._generate_and_score_completions
        trainer.model.generate = self.generate
        trainer._generate_single_turn = self.single_turn
        trainer._calculate_rewards = self.rewards
        trainer._generate_and_score_completions = self.score_completions

    def generate(self, **inputs: Any) -> Tensor:
        """`model.generate` with forced lengths; in the step after the measured ones it also keeps the raw logits."""
        step = len(self.generation_s)
        if self.case.name == "heavy-tailed":
            lengths = response_lengths(self.case, step)
            lengths_B = torch.tensor(lengths).repeat_interleave(self.case.group_size)
            inputs["logits_processor"] = [ForcedEnd(lengths_B, inputs["input_ids"].shape[1], self.end_id)]
        if step < self.case.warmup_steps + self.case.measured_steps:
            tokens: Tensor = self._generate(**inputs)
            return tokens
        output = self._generate(**inputs, return_dict_in_generate=True, output_logits=True)
        self._logits_T = output.logits
        sequences: Tensor = output.sequences
        return sequences

    def single_turn(self, *arguments: Any, **options: Any) -> Any:
        """Generation with its padding and cutting."""
        started = time.perf_counter()
        result = self._single_turn(*arguments, **options)
        self.generation_s.append(time.perf_counter() - started)
        return result

    def rewards(self, *arguments: Any, **options: Any) -> Any:
        """The reward function's calls."""
        started = time.perf_counter()
        result = self._rewards(*arguments, **options)
        self.reward_s.append(time.perf_counter() - started)
        return result

    def score_completions(self, inputs: Any) -> Any:
        """Compare generation's log-probabilities with the trainer's first pass at equal weights, where logits were kept."""
        result = self._score_completions(inputs)
        if self._logits_T:
            logprobs_BTV = torch.stack(self._logits_T, 1).float().log_softmax(-1)
            sampled_BT = logprobs_BTV.gather(2, result["completion_ids"][..., None]).squeeze(2)
            real_BT = result["completion_mask"].bool()
            self.gap_nats = float((sampled_BT - result["old_per_token_logps"])[real_BT].abs().max())
        return result


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Marks the end of each rollout batch, which is `updates_per_rollout` optimiser steps."""

    def __init__(self, updates_per_rollout: int) -> None:
        self.updates_per_rollout = updates_per_rollout
        self.boundaries: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Start."""
        self.boundaries.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Mark."""
        if state.global_step % self.updates_per_rollout == 0:
            self.boundaries.append(time.perf_counter())


def trainer_settings(case: Case, folder: Path) -> Any:
    """Without logging, checkpoints, mixed precision, gradient checkpointing (on by default; off is faster) or load-balancing loss."""
    steps = case.warmup_steps + case.measured_steps + 1
    exact = {"min_new_tokens": case.constant_tokens} if case.name == "constant" else {}
    return GRPOConfig(
        output_dir=str(folder / "output"),
        use_cpu=True,
        bf16=False,
        seed=case.seed,
        per_device_train_batch_size=case.samples_per_step // case.updates_per_rollout,
        gradient_accumulation_steps=1,
        generation_batch_size=case.samples_per_step,
        num_generations=case.group_size,
        num_iterations=1,
        max_steps=steps * case.updates_per_rollout,
        max_completion_length=case.max_new_tokens,
        generation_kwargs=exact,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=case.beta,
        learning_rate=case.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        gradient_checkpointing=False,
        router_aux_loss_coef=0.0,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )


def reward(completions: list[str], **columns: Any) -> list[float]:
    """The same reward as on the other side."""
    return [digit_share(text) for text in completions]


def build_trainer(case: Case, folder: Path) -> Any:
    """Model and tokenizer go through a folder, from which TRL loads its reference."""
    own = character_tokenizer(ALPHABET)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own.fast, bos_token=own.start_token, eos_token=own.end_token, pad_token=own.end_token
    )
    set_seed(case.seed)
    model_folder = folder / "model"
    Qwen3MoeForCausalLM(peer_config(own.vocab_size, own.end_id)).save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    steps = case.warmup_steps + case.measured_steps + 1
    rows = [{"prompt": START + text} for step in range(steps) for text in prompt_texts(case, step)]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        reward_funcs=reward,
        args=trainer_settings(case, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for model in (trainer.model, trainer.ref_model):
        model.set_experts_implementation(case.setting.experts)
    return trainer


def active_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, used by one token): experts count with the share that is chosen."""
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    return total, total - experts + experts * CHOSEN // EXPERTS


def run_case(case: Case, folder: Path, idle_bytes: int) -> PeerResult:
    """Train for all steps, report the measured ones."""
    trainer = build_trainer(case, folder)
    clock = StepClock(case.updates_per_rollout)
    trainer.add_callback(clock)
    meter = Meter(case, trainer, trainer.processing_class.eos_token_id)
    prompt_tokens = len(trainer.processing_class(trainer.train_dataset[0]["prompt"])["input_ids"])
    trainer.train()
    measured = range(case.warmup_steps, case.warmup_steps + case.measured_steps)
    step_s = [clock.boundaries[step + 1] - clock.boundaries[step] for step in measured]
    sampled = [case.group_size * sum(response_lengths(case, step)) for step in measured]
    total, active = active_parameters(trainer.model)
    return PeerResult(
        peer="trl",
        versions=package_versions(("trl", "transformers", "torch")),
        case=case,
        step_s=tuple(step_s),
        sampling_s=tuple(meter.generation_s[step] for step in measured),
        learning_s=tuple(
            seconds - meter.generation_s[step] - meter.reward_s[step]
            for step, seconds in zip(measured, step_s, strict=True)
        ),
        sampled_tokens=tuple(sampled),
        learned_tokens=tuple(tokens + case.samples_per_step * prompt_tokens for tokens in sampled),
        idle_bytes=idle_bytes,
        peak_bytes=resident_bytes(),
        gap_nats=meter.gap_nats,
        parameters=total,
        active_parameters=active,
    )


def main(case_file: str, result_file: str) -> None:
    """Read the case, write the result."""
    idle_bytes = resident_bytes(peak=False)
    case = Case.model_validate_json(Path(case_file).read_text())
    torch.set_num_threads(case.setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = run_case(case, Path(folder), idle_bytes)
    Path(result_file).write_text(result.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
