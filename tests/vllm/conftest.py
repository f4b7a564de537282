"""Real vLLM engines in this process, started once for each checkpoint and kept, because a start takes seconds."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from samepath.rollout.engine_settings import describe
from samepath.rollout.vllm.settings import VllmSettings
from samepath.rollout.vllm.version import installed_vllm
from tests.vllm_checkpoints import BY_NAME, Reference, write_checkpoint

EXACT = VllmSettings(dtype="float32", cache_bytes=16 << 20, max_sequences=32, return_sampling_mask=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs vLLM, warns of much that is not ours, and runs in an order that keeps vLLM's traces out of other tests."""
    places = [place for place, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    ours = sorted((items[place] for place in places), key=_traces)
    for place, item in zip(places, ours):
        items[place] = item
        item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        if installed_vllm() is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed: make setup-vllm"))


def _traces(item: pytest.Item) -> int:
    """0: engines in other processes only. 1: in this one, where vLLM changes what transformers writes. 2: starts that fail in this one."""
    if item.path.stem == "test_vllm_starts":
        return 2
    return int(bool({"engine", "served"} & set(getattr(item, "fixturenames", ()))))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(family, seed)`: a folder, written once."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name, seed=0: write_checkpoint(BY_NAME[name], root / f"{name}-{seed}", seed))


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[..., Path]) -> Callable[..., Reference]:
    """`reference(family, seed)`: transformers' forward of that checkpoint."""
    return cache(lambda name, seed=0: Reference(BY_NAME[name], checkpoint(name, seed)))


@pytest.fixture(scope="session")
def engine(checkpoint: Callable[..., Path]) -> Callable[..., object]:
    """`engine(family, seed, settings)`: an idle engine with the checkpoint's own weights unless a test changed them."""
    os.environ.update(describe(EXACT).environment(EXACT))

    @cache
    def start(name: str, seed: int = 0, settings: VllmSettings = EXACT) -> object:
        # Late: the variables above must stand before vLLM is imported.
        from samepath.rollout.engine import build_engine

        return build_engine(checkpoint(name, seed), settings)

    return start
