"""The whole network: backends agree, rows stand alone, sequences do not mix, cached decoding gives the packed pass's bits."""

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.model.key_store import CachedKeys, PackedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import plan_decode
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import packed_input, random_sequences, run

LENGTHS = (50, 7, 33, 90)
TOTAL = sum(LENGTHS)


def outputs_and_gradients(model: CausalLM, lengths: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    batch = packed_input(model.config, random_sequences(model.config, lengths))
    trace = ForwardTrace(train_indexer=True)
    hidden_ND = model(batch, PackedKeys(), trace)
    logits_NV = hidden_ND[: sum(lengths)] @ model.head.T
    loss = logits_NV.log_softmax(-1)[:, 4].sum() + torch.stack(trace.indexer_losses).sum()
    loss.backward()
    return logits_NV.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@pytest.mark.parametrize("lengths", [LENGTHS, (50, 7, 33, 60)], ids=["gathered backward", "dense backward"])
def test_model_torch_backend_equals_reference_outputs_and_gradients(
    lengths: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """float64 agrees to 1e-10; float32 to 5e-5 of the largest value (three layers of sums in another order)."""
    model = tiny_model()
    reference = CausalLM(model.config, "reference")
    reference.load_state_dict(model.state_dict())
    logits_NV, gradients = outputs_and_gradients(model.to(dtype), lengths)
    wanted_NV, wanted = outputs_and_gradients(reference.double(), lengths)
    torch.testing.assert_close(logits_NV.double(), wanted_NV, rtol=0, atol=tolerance * float(wanted_NV.abs().max()))
    assert gradients.keys() == wanted.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        size = max(1.0, float(wanted[name].abs().max()))
        torch.testing.assert_close(gradient.double(), wanted[name], rtol=0, atol=tolerance * size, msg=name)


def test_model_changing_one_packed_sequence_leaves_the_others_bit_equal() -> None:
    model = tiny_model()
    sequences = random_sequences(model.config, LENGTHS)
    before, trace = run(model, packed_input(model.config, sequences))
    sequences[1] = (sequences[1] + 5) % model.config.vocab_size
    after, changed = run(model, packed_input(model.config, sequences))
    inside = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
    assert bool((after[inside] != before[inside]).any(1).all())
    for part in (slice(0, inside.start), slice(inside.stop, TOTAL)):
        assert torch.equal(after[part], before[part])
        assert torch.equal(changed.stacked_routes()[part], trace.stacked_routes()[part])


def test_model_later_tokens_never_change_earlier_rows() -> None:
    model = tiny_model()
    (sequence,) = random_sequences(model.config, [64])
    whole, _ = run(model, packed_input(model.config, [sequence]))
    for length in (1, 16, 23, 40):
        part, _ = run(model, packed_input(model.config, [sequence[:length]]))
        assert torch.equal(part[:length], whole[:length])


def test_model_sequence_alone_equals_sequence_in_a_packed_batch_bit_for_bit() -> None:
    model = tiny_model()
    sequences = random_sequences(model.config, LENGTHS)
    packed, _ = run(model, packed_input(model.config, sequences))
    start = 0
    for sequence in sequences:
        alone, _ = run(model, packed_input(model.config, [sequence]))
        assert torch.equal(alone[: len(sequence)], packed[start : start + len(sequence)])
        start += len(sequence)


def test_model_thread_count_changes_no_bit() -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, LENGTHS))
    single, _ = run(model, batch)
    torch.set_num_threads(2)
    try:
        double, _ = run(model, batch)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(double[:TOTAL], single[:TOTAL])


def test_model_decoding_from_a_scattered_cache_equals_the_packed_pass_bit_for_bit() -> None:
    model = tiny_model()
    config = model.config
    (sequence,) = random_sequences(config, [70])
    with torch.inference_mode():
        packed, packed_trace = run(model, packed_input(config, [sequence]))
        cache = SlotCache(config, 200, torch.float32)
        slots = torch.randperm(199, generator=torch.Generator().manual_seed(0))[:70] + 1
        for position in range(70):
            keys_BS = torch.zeros(1, round_up(position + 1), dtype=torch.int64)
            keys_BS[0, : position + 1] = slots[: position + 1]
            token_ids, positions, own = (torch.zeros(16, dtype=torch.int64) for _ in range(3))
            token_ids[0], positions[0], own[0] = sequence[position], position, slots[position]
            plan = plan_decode(torch.tensor([position + 1]), keys_BS, 16, config.window_heads)
            trace = ForwardTrace(record_fingerprints=True)
            batch = ModelInput(token_ids_N=token_ids, positions_N=positions, plan=plan)
            hidden_ND = model(batch, CachedKeys(cache, own), trace)
            assert torch.equal(hidden_ND[0], packed[position])
            assert torch.equal(trace.stacked_routes()[0], packed_trace.stacked_routes()[position])
            assert torch.equal(trace.stacked_fingerprints()[0], packed_trace.stacked_fingerprints()[position])


def test_model_replaying_its_own_routes_changes_no_bit_and_rolled_layers_do() -> None:
    model = tiny_model()
    sequences = random_sequences(model.config, LENGTHS)
    live, trace = run(model, packed_input(model.config, sequences))
    routes_LNX = torch.stack(trace.routes)
    replayed, _ = run(model, packed_input(model.config, sequences, routes_LNX))
    assert torch.equal(replayed, live)
    rolled, rolled_trace = run(model, packed_input(model.config, sequences, routes_LNX.roll(1, 0)))
    assert not torch.equal(rolled, live)
    assert torch.equal(torch.stack(rolled_trace.routes), routes_LNX.roll(1, 0))


def test_model_missing_routes_fall_back_to_the_live_router() -> None:
    model = tiny_model()
    sequences = random_sequences(model.config, LENGTHS)
    live, _ = run(model, packed_input(model.config, sequences))
    missing = torch.full((2, round_up(TOTAL), 2), -1)
    assert torch.equal(run(model, packed_input(model.config, sequences, missing))[0], live)


def test_model_router_gets_gradient_under_replay() -> None:
    model = tiny_model()
    sequences = random_sequences(model.config, [20])
    routes_LNX = torch.tensor([[[5, 2]] * 32, [[0, 7]] * 32])
    hidden_ND, _ = run(model, packed_input(model.config, sequences, routes_LNX))
    (hidden_ND[:20] @ model.head.T).log_softmax(-1)[:, 2].sum().backward()
    touched = {
        name: parameter.grad.abs().sum(1).nonzero().flatten().tolist()
        for name, parameter in model.named_parameters()
        if name.endswith("router") and parameter.grad is not None
    }
    assert touched == {"layers.1.feed_forward.router": [2, 5], "layers.2.feed_forward.router": [0, 7]}


@pytest.mark.parametrize("shape", [(1, 32, 2), (2, 16, 2), (2, 32, 3)])
def test_model_replay_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, [20]), torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[L_moe, N, X\] = \(2, 32, 2\)"):
        run(model, batch)


def test_model_rows_not_padded_to_sixteen_are_refused() -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, [16]))
    short = ModelInput(token_ids_N=batch.token_ids_N[:9], positions_N=batch.positions_N[:9], plan=batch.plan)
    with pytest.raises(ValueError, match="multiple of 16 rows; got 9"):
        run(model, short)


def test_initialise_is_seeded_and_has_the_configured_spread() -> None:
    one, same, other = tiny_model(5), tiny_model(5), tiny_model(6)
    assert torch.equal(one.head, same.head)
    assert not torch.equal(one.head, other.head)
    spread = one.state_dict()["layers.1.feed_forward.gate_up"].std()
    assert spread.item() == pytest.approx(0.12, rel=0.05)
    assert torch.equal(one.norm, torch.ones(64))


def test_model_without_sparse_layers_runs_and_reports_no_routes() -> None:
    model = tiny_model(first_k_dense_replace=3)
    hidden_ND, trace = run(model, packed_input(model.config, random_sequences(model.config, [20])))
    assert bool(hidden_ND[:20].isfinite().all())
    assert trace.routes == []


def test_tied_embedding_gets_the_gradient_of_both_uses() -> None:
    config = tiny_config(tie_word_embeddings=True)
    model = CausalLM(config)
    model.initialise(0)
    assert model.head is model.embedding
    assert "head" not in dict(model.named_parameters())
    (sequence,) = random_sequences(config, [20])
    hidden_ND, _ = run(model, packed_input(config, [sequence]))
    (hidden_ND[:20] @ model.head.T).log_softmax(-1)[:, 0].sum().backward()
    unused = sorted(set(range(config.vocab_size)) - set(sequence.tolist()))
    assert unused
    assert model.embedding.grad is not None
    assert bool(model.embedding.grad[unused].any(1).all())
