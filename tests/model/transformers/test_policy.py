"""Packed rows through foreign models: no sequence sees another, and each equals the plain forward pass of transformers."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GemmaConfig, PreTrainedModel

from samepath.kernels.backend import round_up
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.plan import Span, plan_spans
from samepath.model.trace import ForwardTrace
from samepath.model.transformers.packed_pass import PassError
from samepath.model.transformers.policy import TransformersPolicy
from samepath.model.transformers.router_replay import require_known_routers
from samepath.model.transformers.support import check_config
from tests.tiny_transformers import DENSE, FAMILIES, MIXTURES, VOCAB, tiny_transformers

LENGTHS = (19, 3, 26, 1, 11)


def sequences(lengths: tuple[int, ...] = LENGTHS, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]


def packed(rows: list[Tensor], replay_LNX: Tensor | None = None, heads: int = 4) -> ModelInput:
    """Sequences end to end, padded."""
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).tolist()
    total = round_up(starts[-1])
    token_ids_N, positions_N = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.int64)
    spans = []
    for start, row in zip(starts, rows):
        token_ids_N[start : start + len(row)] = row
        positions_N[start : start + len(row)] = torch.arange(len(row))
        spans.append(Span(row=start, first=0, count=len(row), keys=torch.arange(start, start + len(row))))
    return ModelInput(
        token_ids_N=token_ids_N,
        positions_N=positions_N,
        plan=plan_spans(spans, total, heads),
        replay_LNX=replay_LNX,
    )


def run(policy: TransformersPolicy, batch: ModelInput) -> tuple[Tensor, ForwardTrace]:
    trace = ForwardTrace()
    return policy(batch, PackedKeys(), trace), trace


def plain_hidden(model: PreTrainedModel, row: Tensor) -> Tensor:
    """The untouched model's final hidden states of one sequence."""
    return model.get_decoder()(input_ids=row[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_of_a_pack_equals_each_sequence_alone_and_plain_transformers(family: str) -> None:
    plain = tiny_transformers(family)
    policy = TransformersPolicy(tiny_transformers(family))
    rows = sequences()
    with torch.no_grad():
        hidden_ND, _ = run(policy, packed(rows))
        start = 0
        for row in rows:
            part = hidden_ND[start : start + len(row)]
            torch.testing.assert_close(part, run(policy, packed([row]))[0][: len(row)], rtol=0, atol=1e-5)
            torch.testing.assert_close(part, plain_hidden(plain, row), rtol=0, atol=1e-5)
            start += len(row)


def test_forward_of_sequences_that_share_prompt_rows_equals_each_alone() -> None:
    policy = TransformersPolicy(tiny_transformers("Qwen3Moe"))
    prompt, first, second = sequences((9, 7, 5))
    token_ids_N, positions_N = torch.zeros(32, dtype=torch.int64), torch.zeros(32, dtype=torch.int64)
    token_ids_N[:21] = torch.cat([prompt, first, second])
    positions_N[:21] = torch.cat([torch.arange(9), torch.arange(9, 16), torch.arange(9, 14)])
    spans = [
        Span(row=0, first=0, count=9, keys=torch.arange(9)),
        Span(row=9, first=9, count=7, keys=torch.arange(16)),
        Span(row=16, first=9, count=5, keys=torch.cat([torch.arange(9), torch.arange(16, 21)])),
    ]
    batch = ModelInput(token_ids_N=token_ids_N, positions_N=positions_N, plan=plan_spans(spans, 32, 4))
    with torch.no_grad():
        hidden_ND, _ = run(policy, batch)
        for response, start in ((first, 9), (second, 16)):
            alone_ND, _ = run(policy, packed([torch.cat([prompt, response])]))
            torch.testing.assert_close(
                hidden_ND[start : start + len(response)], alone_ND[9 : 9 + len(response)], rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("family", ["Mistral", "DeepseekV3"])
def test_gradient_of_a_pack_is_the_sum_of_its_sequences_and_finite(family: str) -> None:
    """Rows that pad a window or the batch have no keys of their own and must send nothing, NaN least of all, into the weights."""
    policy = TransformersPolicy(tiny_transformers(family))
    rows = sequences()
    weights_D = torch.randn(64, generator=torch.Generator().manual_seed(1))
    parameters = list(policy.parameters())

    def gradient(batch: ModelInput, count: int) -> list[Tensor]:
        hidden_ND, _ = run(policy, batch)
        total = (hidden_ND[:count] @ weights_D).square().sum()
        return [g for g in torch.autograd.grad(total, parameters, allow_unused=True) if g is not None]

    whole = gradient(packed(rows), sum(LENGTHS))
    parts = [gradient(packed([row]), len(row)) for row in rows]
    assert len(whole) > 20
    for together, alone in zip(whole, zip(*parts)):
        assert together.isfinite().all()
        torch.testing.assert_close(together, sum(alone), rtol=1e-3, atol=1e-3)


def test_passes_in_threads_give_the_routes_of_passes_alone() -> None:
    policy = TransformersPolicy(tiny_transformers("Olmoe"))
    batches = [packed(sequences(seed=seed)) for seed in range(6)]

    def routes(batch: ModelInput) -> Tensor:
        with torch.no_grad():
            return torch.stack(run(policy, batch)[1].routes)

    alone = [routes(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        for expected, found in zip(alone, pool.map(routes, batches), strict=True):
            assert torch.equal(expected, found)


def test_model_outside_of_a_pass_refuses_to_attend() -> None:
    policy = TransformersPolicy(tiny_transformers("Llama"))
    with pytest.raises(PassError, match=r"TransformersPolicy\.forward"):
        policy.model(input_ids=torch.zeros(1, 4, dtype=torch.int64))


def test_train_leaves_dropout_off() -> None:
    policy = TransformersPolicy(tiny_transformers("Llama", attention_dropout=0.5))
    batch = packed(sequences())
    with torch.no_grad():
        before, _ = run(policy, batch)
        after, _ = run(policy.train(), batch)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "longest sequence"),
        ("DeepseekV3", {"index_topk": 8}, "implementation: own"),
        ("Llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("Qwen3", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ("Qwen3", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
    ],
)
def test_check_config_of_what_packing_or_the_head_would_change_is_refused(
    family: str, changes: dict[str, object], reason: str
) -> None:
    config = tiny_transformers(family).config
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=reason):
        check_config(config)


def test_policy_of_a_model_that_scales_its_logits_is_refused_by_its_own_logits() -> None:
    """Cohere multiplies its logits; with the name hidden from the first check the probe must still see it."""
    model = tiny_transformers("Llama")
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: output * 0.5)
    with pytest.raises(ValueError, match="chunked log-probability head"):
        TransformersPolicy(model)


def test_policy_of_a_head_with_a_bias_is_refused() -> None:
    model = tiny_transformers("Llama")
    model.lm_head = torch.nn.Linear(64, VOCAB, bias=True)
    with pytest.raises(ValueError, match="a bias"):
        TransformersPolicy(model)


@pytest.mark.parametrize(
    ("architecture", "sizes", "reason"),
    [
        ("GptOss", {"num_local_experts": 4, "layer_types": ["full_attention"]}, "s_aux"),
        ("Gemma2", {"final_logit_softcapping": None, "layer_types": ["full_attention"]}, "softcap"),
    ],
)
def test_policy_of_attention_that_does_more_is_refused(
    architecture: str, sizes: dict[str, object], reason: str
) -> None:
    common = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    config = getattr(transformers, f"{architecture}Config")(**common, **heads, pad_token_id=0, **sizes)
    with pytest.raises(PassError, match=reason):
        TransformersPolicy(getattr(transformers, f"{architecture}ForCausalLM")(config))


def test_policy_of_a_model_that_bypasses_the_attention_interface_is_refused() -> None:
    model = tiny_transformers("Llama")
    layer = model.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.raises(PassError, match=r"only \[0, 2\] did"):
        TransformersPolicy(model)


def test_policy_of_a_router_that_computes_other_gates_is_refused() -> None:
    """A later transformers that changes a router's formula must not be replayed with the old one."""
    model = tiny_transformers("DeepseekV3")
    gate = model.model.layers[2].mlp.gate
    original = gate.forward
    gate.forward = lambda hidden: (lambda out: (out[0], out[1] * 1.1, out[2]))(original(hidden))
    with pytest.raises(PassError, match="no longer gives the gates"):
        TransformersPolicy(model)


def test_require_known_routers_names_what_is_supported() -> None:
    model = tiny_transformers("Olmoe")
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = type("StrangeTopKRouter", (type(layer.mlp.gate),), {})
    policy = TransformersPolicy(model)
    assert policy.shape.moe_layers == ()
    with pytest.raises(ValueError, match="Qwen3MoeTopKRouter.*keep_routing=off"):
        require_known_routers(policy.model)
    require_known_routers(tiny_transformers("Llama"))


@pytest.mark.parametrize("family", MIXTURES)
def test_shape_of_a_mixture_numbers_its_layers_globally(family: str) -> None:
    shape = TransformersPolicy(tiny_transformers(family)).shape
    dense = {"Qwen3Moe": (0, 2)}.get(family, (1, 2) if "first_k_dense_replace" in MIXTURES[family] else (0, 1, 2))
    assert shape.moe_layers == dense
    assert (shape.n_routed_experts, shape.num_experts_per_tok) == (8, 2)


def test_shape_of_dense_models_has_no_experts() -> None:
    for family in DENSE:
        shape = TransformersPolicy(tiny_transformers(family)).shape
        assert (shape.moe_layers, shape.n_routed_experts, shape.sparse_layers) == ((), 0, ())


def test_policy_can_be_copied_with_its_hooks() -> None:
    policy = TransformersPolicy(tiny_transformers("Qwen3Moe"))
    twin = copy.deepcopy(policy)
    batch = packed(sequences())
    with torch.no_grad():
        hidden_ND, trace = run(twin, batch)
        expected_ND, _ = run(policy, batch)
    assert torch.equal(hidden_ND, expected_ND)
    assert len(trace.routes) == 2


def test_gemma_without_softcapping_is_not_refused() -> None:
    check_config(GemmaConfig(vocab_size=VOCAB, num_hidden_layers=1))
