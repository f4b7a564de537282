"""One learner pass: the sampler's numbers on the sampler's path, gradients that do not depend on the packing."""

import numpy as np
import pytest
import torch

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.cut import split_by_tokens
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rl.diagnostics.path_counts import PathCounts
from samepath.rl.learner.policy_pass import PolicyPass, run_policy
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.sampling_settings import SamplingSettings
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import random_prompt, request, train_sequences

SAMPLING = SamplingSettings(max_new_tokens=18, temperature=0.8, top_p=0.8)


@pytest.fixture
def sequences(tokenizer: Tokenizer) -> list[TrainSequence]:
    rng = np.random.default_rng(0)
    entries = [request(f"g{n}", random_prompt(rng, 18, 5 + 7 * n), SAMPLING, (n, n + 10)) for n in range(4)]
    return train_sequences(BuiltinEngine(tiny_model(), tokenizer, BuiltinSettings()).run(entries), SAMPLING.temperature)


def gradients(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def run(model: CausalLM, batch: PackedBatch) -> torch.Tensor:
    return run_policy(model, batch, routes_LNX=batch.routes_LNX, use_support=True).logprobs_M


def test_run_policy_with_gradient_equals_the_sampler_bit_for_bit(sequences: list[TrainSequence]) -> None:
    batch = pack(sequences, tiny_config())
    logprobs_M = run(tiny_model(), batch)
    assert logprobs_M.requires_grad
    assert torch.equal(logprobs_M.detach(), batch.sampler_logprobs_M)


def test_run_policy_any_split_gives_the_same_bits_and_the_same_gradient(sequences: list[TrainSequence]) -> None:
    """Micro-batches change no log-probability; the gradient is the same sum, in float64 to 1e-10."""
    config = tiny_config()
    whole_model, split_model = tiny_model().double(), tiny_model().double()
    run(whole_model, pack(sequences, config)).sum().backward()
    float_parts, parts = [], split_by_tokens(sequences, 60)
    assert len(parts) > 2
    for part in parts:
        batch = pack([sequences[index] for index in part], config)
        run(split_model, batch).sum().backward()
        with torch.no_grad():
            float_parts.append(run(tiny_model(), batch))
    with torch.no_grad():
        assert torch.equal(torch.cat(float_parts), run(tiny_model(), pack(sequences, config)))
    wanted = gradients(whole_model)
    assert wanted
    for name, gradient in gradients(split_model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-10, msg=name)


@pytest.fixture
def group(tokenizer: Tokenizer) -> list[TrainSequence]:
    """Six samples of one prompt that is longer than the model's top-k."""
    prompt = random_prompt(np.random.default_rng(1), 18, 21)
    entry = request("g", prompt, SAMPLING, range(6))
    return train_sequences(BuiltinEngine(tiny_model(), tokenizer, BuiltinSettings()).run([entry]), SAMPLING.temperature)


def full_pass(model: CausalLM, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, PolicyPass]:
    """(log-probabilities, policy and indexer loss summed over tokens and over rows of all sequences, the pass)."""
    done = run_policy(
        model, batch, routes_LNX=batch.routes_LNX, use_support=True, fingerprints=True, train_indexer=True
    )
    weights_M = torch.linspace(-1, 1, 97, dtype=done.logprobs_M.dtype)[
        (batch.targets_M + 3 * batch.positions_N[batch.rows_M]) % 97
    ]
    loss = (done.logprobs_M * weights_M).sum() + torch.stack(done.trace.indexer_losses)[:, batch.rows_R].sum()
    return done.logprobs_M, loss, done


def test_run_policy_with_a_shared_prompt_equals_each_sample_alone(group: list[TrainSequence]) -> None:
    """Log-probabilities and selections bit for bit in float32, policy and indexer gradients within rounding in float64."""
    config = tiny_config()
    assert max(len(entry.segment.token_ids) for entry in group) > config.index_topk
    together, alone = pack(group, config), [pack([entry], config) for entry in group]
    assert together.num_rows <= sum(batch.num_rows for batch in alone) - 5 * 21
    assert len(together.rows_M.unique()) < len(together.rows_M) - 5, "some samples begin with the same tokens"
    with torch.no_grad():
        shared = full_pass(tiny_model(), together)[2]
        separate = [full_pass(tiny_model(), batch)[2] for batch in alone]
    assert torch.equal(shared.logprobs_M, torch.cat([done.logprobs_M for done in separate]))
    assert torch.equal(shared.logprobs_M, together.sampler_logprobs_M)
    prints_RL = torch.cat([done.trace.stacked_fingerprints()[batch.rows_R] for batch, done in zip(alone, separate)])
    assert torch.equal(shared.trace.stacked_fingerprints()[together.rows_R], prints_RL)
    shared_model, separate_model = tiny_model().double(), tiny_model().double()
    full_pass(shared_model, together)[1].backward()
    for batch in alone:
        full_pass(separate_model, batch)[1].backward()
    wanted = gradients(separate_model)
    assert any("indexer" in name for name in wanted)
    for name, gradient in gradients(shared_model).items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-10, msg=name)


def test_path_counts_of_a_shared_prompt_counts_it_for_each_sample(group: list[TrainSequence]) -> None:
    """Flips, missing rows and loads of one packed group are those of its samples packed one by one."""
    config = tiny_config()
    moved = tiny_model()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name.endswith("router"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for entry in group:
        entry.segment.routes[3] = -1
    shared, separate, flips = PathCounts(config), PathCounts(config), []
    with torch.no_grad():
        together = pack(group, config)
        shared.add(together, full_pass(moved, together)[2].trace, replayed=True)
        for entry in group:
            batch = pack([entry], config)
            separate.add(batch, full_pass(moved, batch)[2].trace, replayed=True)
            flips.append(float(separate.last_flips.flips_B[0] / separate.last_flips.rows_B[0]))
    assert max(flips) > 0
    last = shared.last_flips
    np.testing.assert_allclose(last.flips_B / last.rows_B, flips, rtol=1e-6)
    assert shared.metrics() == separate.metrics()


def test_run_policy_order_of_sequences_changes_no_bit(sequences: list[TrainSequence]) -> None:
    config = tiny_config()
    batch, reversed_batch = pack(sequences, config), pack(sequences[::-1], config)
    with torch.no_grad():
        forward, backward = run(tiny_model(), batch), run(tiny_model(), reversed_batch)
    for index in range(len(sequences)):
        mirrored = reversed_batch.sequence_M == len(sequences) - 1 - index
        assert torch.equal(forward[batch.sequence_M == index], backward[mirrored])


def test_run_policy_without_support_is_over_the_full_vocabulary(sequences: list[TrainSequence]) -> None:
    batch, model = pack(sequences, tiny_config()), tiny_model()
    with torch.no_grad():
        kept = run_policy(model, batch, routes_LNX=None, use_support=True)
        full = run_policy(model, batch, routes_LNX=None, use_support=False)
    torch.testing.assert_close(full.logprobs_M, kept.logprobs_M + kept.head.kept_mass_M.log(), rtol=0, atol=1e-5)
    assert torch.equal(full.head.entropy_M, kept.head.entropy_M)
    assert torch.equal(full.head.kept_mass_M, torch.ones_like(full.head.kept_mass_M))
    assert bool((kept.head.kept_mass_M >= SAMPLING.top_p - 1e-5).all())


def test_run_policy_records_fingerprints_and_indexer_losses_only_if_asked(sequences: list[TrainSequence]) -> None:
    batch, model = pack(sequences, tiny_config()), tiny_model()
    plain = run_policy(model, batch, routes_LNX=None, use_support=True)
    assert plain.trace.fingerprints == []
    assert plain.trace.indexer_losses == []
    full = run_policy(model, batch, routes_LNX=None, use_support=True, fingerprints=True, train_indexer=True)
    assert torch.equal(full.trace.stacked_fingerprints()[: batch.num_rows], batch.fingerprints_NL[: batch.num_rows])
    assert len(full.trace.indexer_losses) == 3
    assert torch.equal(full.logprobs_M, plain.logprobs_M)


def test_run_policy_other_number_of_selected_keys_is_used(sequences: list[TrainSequence]) -> None:
    batch = pack(sequences, tiny_config())
    with torch.no_grad():
        overridden = run_policy(tiny_model(), batch, routes_LNX=None, use_support=True, num_selected=5)
        configured = run_policy(tiny_model(index_topk=5), batch, routes_LNX=None, use_support=True)
    assert torch.equal(overridden.logprobs_M, configured.logprobs_M)
    assert not torch.equal(overridden.logprobs_M, batch.sampler_logprobs_M)


def test_run_policy_tokens_of_another_batch_are_refused(sequences: list[TrainSequence]) -> None:
    """A support that does not hold its token cannot be the token's own record."""
    batch = pack(sequences, tiny_config())
    batch.targets_M.copy_((batch.targets_M + 1) % 18)
    with pytest.raises(ValueError, match="recorded support"), torch.no_grad():
        run(tiny_model(), batch)


def test_run_policy_reference_backend_agrees_within_rounding(sequences: list[TrainSequence]) -> None:
    batch, model = pack(sequences, tiny_config()), tiny_model().double()
    reference = CausalLM(model.config, "reference").double()
    reference.load_state_dict(model.state_dict())
    for one, other in zip(
        *(
            [seen.logprobs_M, seen.head.entropy_M, seen.head.kept_mass_M]
            for seen in (
                run_policy(entry, batch, routes_LNX=batch.routes_LNX, use_support=True) for entry in (model, reference)
            )
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
