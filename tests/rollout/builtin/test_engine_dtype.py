"""`engine.dtype: bfloat16`: the built-in engine samples in another type than the learner's, with a gap."""

from pathlib import Path

import numpy as np
import torch

from samepath.model.files.checkpoint import published_tensors, save_checkpoint
from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_settings import describe
from tests.conftest import tiny_model
from tests.engine_runs import TOKENIZER, mixed_requests

NARROW = BuiltinSettings(dtype="bfloat16")


def built(folder: Path, settings: BuiltinSettings, backend: str = "torch") -> BuiltinEngine:
    save_checkpoint(tiny_model(), folder)
    TOKENIZER.save(folder)
    return describe(settings).build(folder, settings, Placement(backend=backend))  # type: ignore[no-any-return,arg-type]


def test_weights_keys_and_logprobs_are_rounded(tmp_path: Path) -> None:
    narrow, wide = built(tmp_path / "a", NARROW), built(tmp_path / "b", BuiltinSettings())
    assert {one.dtype for one in narrow.model.parameters()} == {torch.bfloat16}
    (group, *_), (other, *_) = narrow.run(mixed_requests()), wide.run(mixed_requests())
    pairs = [(a.segments[0], b.segments[0]) for a, b in zip(group.rollouts, other.rollouts)]
    # Up to the first token that differs, both have the same context.
    gaps = []
    for one, two in pairs:
        same = np.cumprod(one.token_ids == two.token_ids).astype(bool)
        gaps.append(np.abs(one.sampler_logprobs - two.sampler_logprobs)[same])
    # A row that another expert took may be far off.
    assert 0 < np.median(np.concatenate(gaps)) < 0.05


def test_new_weights_are_rounded_as_they_come_and_the_learner_s_tensors_are_not_shared(tmp_path: Path) -> None:
    engine, learner = built(tmp_path, NARROW), tiny_model(7)
    assert not engine.share_weights(learner, 1)
    engine.load_weights(published_tensors(learner), 1)
    held, wanted = engine.held_weights(), published_tensors(learner)
    assert all(torch.equal(held[name], wanted[name].to(held[name].dtype)) for name in wanted)
    assert learner.norm.dtype == torch.float32


def test_what_it_computes_in_and_with_which_kernels() -> None:
    engine = describe(NARROW)
    assert engine.computes_on(NARROW, ON_CPU) == ("cpu", "bfloat16")
    assert engine.problems(NARROW, 2, ON_CPU) == []
    assert engine.problems(NARROW, 2, Placement(backend="reference"))[0].startswith(
        "engine.dtype=bfloat16 needs model.backend=torch or triton"
    )
