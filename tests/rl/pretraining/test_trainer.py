"""Two losses that do not touch: what each stage trains, and that neither loss moves the other's step."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from samepath.model.key_store import PackedKeys
from samepath.model.network.network import CausalLM
from samepath.model.trace import ForwardTrace
from samepath.rl.pretraining import trainer as module
from samepath.rl.pretraining.trainer import TextTrainer, check_stage
from samepath.rl.recipe.text import StageSettings
from tests.conftest import tiny_model
from tests.families import family_config, family_model
from tests.tiny_runs import packed_input

SEQUENCES = [np.random.default_rng(number).integers(2, 18, 40) for number in range(4)]


def stage(kind: str, **changes: object) -> StageSettings:
    return StageSettings.model_validate(
        {"kind": kind, "steps": 4, "optimizer": {"lr": 0.01, "max_grad_norm": 0.01}, **changes}
    )


def trained(model: CausalLM, settings: StageSettings, steps: int = 1) -> tuple[dict[str, Tensor], Mapping[str, float]]:
    """(weights afterwards, the last step's metrics)."""
    trainer = TextTrainer(model, settings)
    for _ in range(steps):
        metrics = trainer.step(SEQUENCES)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}, metrics


def changed(model: CausalLM, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, _ in model.named_parameters() if not torch.equal(after[name], before[name])}


MODELS: dict[str, Callable[[], CausalLM]] = {
    "grouped": lambda: family_model("samepath_grouped"),
    "grouped with experts": lambda: family_model("samepath_grouped experts"),
    "latent": tiny_model,
}


def of_all_keys(model: CausalLM) -> tuple[float, float]:
    """(loss a token, KL a row and layer) with attention over all keys, on sequences without their last token."""
    trace = ForwardTrace(train_indexer=True)
    batch = packed_input(model.config, [torch.from_numpy(ids[:-1]) for ids in SEQUENCES])
    hidden_ND = model(batch, PackedKeys(), trace, num_selected=64).detach()[: 39 * 4]
    logprobs_NV = (hidden_ND @ model.head_weight.detach().T).log_softmax(-1)
    targets_N = torch.from_numpy(np.concatenate([ids[1:] for ids in SEQUENCES]))
    losses_LN = torch.stack(trace.indexer_losses).detach()
    return -float(logprobs_NV.gather(1, targets_N[:, None]).mean()), float(losses_LN[:, : 39 * 4].mean())


@pytest.mark.parametrize("name", MODELS)
def test_warm_up_moves_every_parameter_of_the_indexer_and_nothing_else(name: str) -> None:
    model = MODELS[name]()
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    buffers = {key: tensor.clone() for key, tensor in model.named_buffers()}
    wanted = of_all_keys(model)
    after, metrics = trained(model, stage("warmup"))
    assert (metrics["text/loss"], metrics["text/indexer_kl"]) == pytest.approx(wanted, rel=1e-5)
    own = {id(parameter) for parameter in model.indexer_parameters()}
    assert changed(model, after, before) == {key for key, one in model.named_parameters() if id(one) in own}
    assert all(torch.equal(tensor, buffers[key]) for key, tensor in model.named_buffers())
    assert metrics["text/indexer_kl"] > 0
    assert "text/grad_norm" not in metrics


@pytest.mark.parametrize("name", MODELS)
def test_sparse_stage_moves_everything(name: str) -> None:
    model = MODELS[name]()
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    after, metrics = trained(model, stage("sparse"))
    assert changed(model, after, before) == set(before)
    assert metrics["text/grad_norm"] > 0.01, "clipped, or the next test says nothing"
    assert metrics["text/indexer_grad_norm"] > 0.01


def scaled(monkeypatch: pytest.MonkeyPatch, *, indexer: float = 1.0, policy: float = 1.0) -> None:
    """Multiply one of the two losses."""
    of_indexer, run = ForwardTrace.indexer_loss, module.run_policy
    monkeypatch.setattr(ForwardTrace, "indexer_loss", lambda *arguments: of_indexer(*arguments) * indexer)

    def run_scaled(*arguments: object, **options: object) -> object:
        result = run(*arguments, **options)  # type: ignore[arg-type]
        return type(result)(
            logprobs_M=result.logprobs_M * policy, head=result.head, hidden_UD=result.hidden_UD, trace=result.trace
        )

    monkeypatch.setattr(module, "run_policy", run_scaled)


@pytest.mark.parametrize("scales", [{"indexer": 64.0}, {"policy": 64.0}], ids=["indexer", "policy"])
@pytest.mark.parametrize("name", MODELS)
def test_neither_loss_moves_the_others_step(
    name: str, scales: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 times the one loss, whose gradients are clipped, leaves the other's parameters where they go without, to the last bit."""
    model = MODELS[name]()
    wanted, _ = trained(model, stage("sparse"))
    scaled(monkeypatch, **scales)
    other = MODELS[name]()
    got, metrics = trained(other, stage("sparse"))
    assert metrics["text/grad_norm" if "policy" in scales else "text/indexer_grad_norm"] > 1
    own = {key for key, one in other.named_parameters() if id(one) in {id(p) for p in other.indexer_parameters()}}
    still = own if "policy" in scales else set(got) - own
    assert still
    assert not changed(other, got, wanted) & still


def test_indexer_lr_scale_is_the_indexers_alone() -> None:
    wanted, _ = trained(family_model("samepath_grouped"), stage("sparse"))
    model = family_model("samepath_grouped")
    got, _ = trained(model, stage("sparse", indexer_lr_scale=0.5))
    own = {key for key, one in model.named_parameters() if id(one) in {id(p) for p in model.indexer_parameters()}}
    assert changed(model, got, wanted) == own


@pytest.mark.parametrize("kind", ["warmup", "sparse"])
def test_passes_and_activation_checkpointing_change_no_more_than_rounding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, sizes = module.pack, []
    monkeypatch.setattr(
        module,
        "pack",
        lambda *arguments, **options: (sizes.append(len(arguments[0])), packed(*arguments, **options))[1],
    )
    wanted, whole = trained(family_model("samepath_grouped"), stage(kind))
    assert sizes == [4]
    for changes in ({"max_tokens_per_pass": 40}, {"activation_checkpointing": True}):
        sizes.clear()
        model = family_model("samepath_grouped")
        got, metrics = trained(model, stage(kind, **changes))
        assert sizes == ([1] * 4 if "max_tokens_per_pass" in changes else [4])
        assert model.activation_checkpointing == ("activation_checkpointing" in changes)
        assert metrics["text/indexer_kl"] == pytest.approx(whole["text/indexer_kl"], rel=1e-5)
        assert metrics["text/loss"] == pytest.approx(whole["text/loss"], rel=1e-5)
        for key, tensor in got.items():
            # A first step of AdamW is the gradient's sign, wherever that is more than rounding.
            assert float((tensor - wanted[key]).abs().mean()) < 1e-4, key


def test_warm_up_teaches_the_indexer() -> None:
    model = family_model("samepath_grouped")
    trainer = TextTrainer(model, stage("warmup", optimizer={"lr": 0.01}))
    losses = [trainer.step(SEQUENCES)["text/indexer_kl"] for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("llama", 40, r"model_type llama here has none. Add one: samepath convert"),
        ("samepath_grouped", 8, r"text.length=8 must be above the model's index_topk=8"),
        ("samepath_grouped", 200, r"text.length=200 must be at most the model's max_position_embeddings=128"),
    ],
)
def test_check_stage_refuses_what_cannot_be_trained(name: str, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stage(family_config(name), stage("sparse"), length)
