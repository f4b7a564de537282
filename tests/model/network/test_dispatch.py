"""A network whose rows may depend on their batch gives what it gives otherwise, whichever windows run in expanded form."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from samepath.model.config import ModelConfig
from samepath.model.key_store import CachedKeys, PackedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network import dispatch
from samepath.model.network.dispatch import divide
from samepath.model.network.network import CausalLM
from samepath.model.plan import Span, merge_plans, plan_decode, plan_spans
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import packed_input, random_sequences

TOPK = 8


@pytest.fixture(autouse=True)
def _short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows as small as the tests' are worth expanding, up to four times as many keys as are selected."""
    monkeypatch.setattr(dispatch, "EXPANDED_QUERIES", 2)
    monkeypatch.setattr(dispatch, "EXPANDED_KEYS", 4)


def free(model: CausalLM) -> CausalLM:
    """The same weights without batch invariance."""
    other = CausalLM(model.config)
    other.load_state_dict(model.state_dict())
    other.to(model.norm.dtype).let_rows_depend_on_their_batch()
    return other


def forked_input(config: ModelConfig, prompt: int, responses: Sequence[int]) -> ModelInput:
    """A prompt of so many tokens, and responses that follow it, each over the prompt's rows and its own."""
    (token_ids,) = random_sequences(config, [prompt + sum(responses)])
    total = -(-len(token_ids) // 16) * 16
    ids_N, positions_N = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.int64)
    ids_N[: len(token_ids)] = token_ids
    positions_N[:prompt] = torch.arange(prompt)
    spans = [Span(row=0, first=0, count=prompt, keys=torch.arange(prompt))]
    row = prompt
    for count in responses:
        keys = torch.cat([torch.arange(prompt), torch.arange(row, row + count)])
        positions_N[row : row + count] = torch.arange(prompt, prompt + count)
        spans.append(Span(row=row, first=prompt, count=count, keys=keys))
        row += count
    return ModelInput(token_ids_N=ids_N, positions_N=positions_N, plan=plan_spans(spans, total, config.window_heads))


def everything(model: CausalLM, batch: ModelInput, rows: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """(hidden states, fingerprints, indexer losses, gradients of a loss on both)."""
    model.zero_grad()
    trace = ForwardTrace(record_fingerprints=True, train_indexer=bool(model.config.index_topk))
    hidden_ND = model(batch, PackedKeys(), trace)[:rows]
    loss = (hidden_ND @ model.head.T).log_softmax(-1)[:, 4].sum()
    losses_LN = torch.stack(trace.indexer_losses)[:, :rows] if trace.indexer_losses else torch.zeros(1, rows)
    (loss + losses_LN.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    fingerprints = trace.stacked_fingerprints()[:rows] if trace.fingerprints else torch.zeros(rows)
    return hidden_ND.detach(), fingerprints, losses_LN.detach(), gradients


def assert_same(one: CausalLM, other: CausalLM, batch: ModelInput, rows: int, atol: float) -> None:
    wanted, got = everything(one, batch, rows), everything(other, batch, rows)
    assert torch.equal(wanted[1], got[1])
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=atol)
    torch.testing.assert_close(got[2], wanted[2], rtol=0, atol=atol)
    assert got[3].keys() == wanted[3].keys()
    for name, gradient in wanted[3].items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(got[3][name], gradient, rtol=0, atol=atol * size, msg=name)


@pytest.mark.parametrize(
    ("lengths", "expanded"),
    [([TOPK], 1), ([TOPK + 1], 1), ([4 * TOPK], 1), ([4 * TOPK + 1], 0), ([1, 1], 0), ([40, 3, 20, 8, 9, 5, 1], 1)],
)
def test_packed_sequences_of_any_length_give_the_same(lengths: list[int], expanded: int) -> None:
    """At the selection's limit, above it, at the crossover, above it, single queries, and everything at once with padding."""
    model = tiny_model().double()
    batch = packed_input(model.config, random_sequences(model.config, lengths))
    division = divide(batch.plan, TOPK).division
    assert (0 if division is None else len(division.expanded)) == expanded
    assert_same(model, free(model), batch, sum(lengths), 1e-10)


def test_float32_agrees_within_rounding() -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, [30, 8, 5]))
    assert_same(model, free(model), batch, 43, 1e-4)


@pytest.mark.parametrize(("prompt", "responses"), [(5, (3, 2)), (6, (3, 9)), (20, (12, 4, 7)), (8, (3, 50))])
def test_responses_over_a_shared_prompt_give_the_same(prompt: int, responses: Sequence[int]) -> None:
    """Queries that do not begin at their first key, of different lengths and numbers, within the selection's limit and beyond."""
    model = tiny_model().double()
    batch = forked_input(model.config, prompt, responses)
    assert any(not window.whole for window in batch.plan.windows)
    assert divide(batch.plan, TOPK).division is not None
    assert_same(model, free(model), batch, prompt + sum(responses), 1e-10)


def test_family_that_attends_to_every_key_gives_the_same() -> None:
    sizes = {name: value for name, value in tiny_config().model_dump().items() if not name.startswith("index_")}
    model = CausalLM(ModelConfig.model_validate({**sizes, "model_type": "deepseek_v3"}))
    model.initialise(0)
    model = model.double()
    batch = packed_input(model.config, random_sequences(model.config, [60, 3, 1]))
    assert divide(batch.plan, 0).division is not None
    assert_same(model, free(model), batch, 64, 1e-10)


@torch.no_grad()
def test_decode_rows_beside_a_prompt_give_the_same() -> None:
    """Two samples take a token while a prompt is prefilled from position 4 on."""
    config = tiny_config()
    model = tiny_model().double()
    generator = torch.Generator().manual_seed(3)
    table = torch.arange(1, 97).view(3, 32)
    plan = merge_plans(
        plan_decode(torch.tensor([20, 6]), table[:2], 16, config.window_heads),
        plan_spans([Span(row=0, first=4, count=13, keys=table[2])], 14, config.window_heads),
        2,
        16,
    )
    slots = torch.cat([table[0, 19:20], table[1, 5:6], table[2, 4:17], torch.zeros(1, dtype=torch.int64)])
    positions = torch.cat([torch.tensor([19, 5]), torch.arange(4, 17), torch.tensor([0])])
    ids = torch.randint(0, config.vocab_size, (16,), generator=generator)
    batch = ModelInput(token_ids_N=ids, positions_N=positions, plan=plan)
    results = []
    for network in (model, free(model)):
        cache = SlotCache(config, 97, torch.float64)
        cache.rows.copy_(torch.randn(cache.rows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        cache.index.copy_(
            torch.randn(cache.index.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        )
        trace = ForwardTrace(record_fingerprints=True)
        results.append((network(batch, CachedKeys(cache, slots), trace)[:15], trace.stacked_fingerprints()[:15]))
    division = divide(plan, TOPK).division
    assert division is not None
    assert division.rows_M.tolist() == [0, 1]
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-10)


def test_windows_of_few_queries_stay_in_absorbed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "EXPANDED_QUERIES", 10)
    config = tiny_config()
    batch = packed_input(config, random_sequences(config, [9, 10]))
    division = divide(batch.plan, TOPK).division
    assert division is None or all(window.rows_BT.shape[1] >= 10 for window in division.expanded)
    assert divide(packed_input(config, random_sequences(config, [9])).plan, TOPK).division is None
