"""Shared small models. Threads are pinned so that bits are reproducible and two cores are never oversubscribed."""

import gc
import os

# The collector would walk all that is imported for 5,000 tests nineteen times, a third of the time until the first of them runs.
gc.disable()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray lets its workers give way to everything else: beside another busy process one would take minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pytest
import torch

from samepath.model.config import ModelConfig
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton decides when a kernel is defined, and other packages may import it before the first kernel test does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ALPHABET = "0123456789+-=#; "


def pytest_configure() -> None:
    """No example that Hypothesis makes has a time limit, which a busy machine would not keep."""
    # Late: programs that tests start take their models from this file.
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """What is imported by now stays, and no collection looks at it again."""
    gc.enable()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries complain of what is there when the interpreter has ended."""
    gc.unfreeze()


def tiny_config(**changes: object) -> ModelConfig:
    """Every mechanism, smallest widths: dense and sparse layers, groups, shared expert, top-k below the sequence length."""
    sizes: dict[str, object] = {
        "vocab_size": len(ALPHABET) + 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.12,
    }
    return ModelConfig.model_validate({**sizes, **changes})


def tiny_model(seed: int = 0, **changes: object) -> CausalLM:
    """A `tiny_config` network with seeded weights."""
    model = CausalLM(tiny_config(**changes))
    model.initialise(seed)
    return model


@pytest.fixture
def tokenizer() -> Tokenizer:
    """One token a character of ALPHABET."""
    return character_tokenizer(ALPHABET)
