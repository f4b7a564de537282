"""Passes over static memory give the bits of ordinary ones; on a CPU the capture runs the pass anew each time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from samepath.kernels.backend import Backend
from samepath.model.files.checkpoint import published_tensors
from samepath.rollout.builtin import decode_graph
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.graph_capture import (
    MOST_GRAPHS,
    Bucket,
    Graphs,
    Work,
    key_bucket,
    row_bucket,
    wants_graphs,
)
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.sampling_settings import SamplingSettings
from tests.conftest import tiny_model
from tests.engine_runs import (
    TOKENIZER,
    assert_learner_walks_the_same_path,
    assert_nothing_leaked,
    assert_same_samples,
    make_engine,
    mixed_requests,
    steps_until_done,
)
from tests.families import FAMILIES, family_model
from tests.rollout.builtin.test_builtin_engine import Workload, engine_settings, workloads
from tests.tiny_runs import random_prompt, request


def repeat(work: Work) -> Work:
    """What a graph does, without one: the same work on the same memory. Runs once before, as a capture does."""
    work()
    return work


def captures(engine: BuiltinEngine) -> int:
    return engine._graphs.graphs.captured if engine._graphs else 0


def graph_engine(sizes: BuiltinSettings | None = None) -> BuiltinEngine:
    return BuiltinEngine(tiny_model(), TOKENIZER, sizes or BuiltinSettings(), repeat)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(workload=workloads(), sizes=engine_settings)
def test_static_passes_any_schedule_equal_ordinary_ones_bit_for_bit(workload: Workload, sizes: BuiltinSettings) -> None:
    engine, plain = graph_engine(sizes), BuiltinEngine(tiny_model(), TOKENIZER, sizes)
    done = {}
    for entry, pause in zip(workload.requests, workload.pauses, strict=True):
        for one in (engine, plain):
            groups = [group for _ in range(pause) for group in one.step()]
            assert one.submit(entry) is None
            done.update({(one is engine, group.group_id): group for group in groups})
    for one in (engine, plain):
        done.update({(one is engine, group.group_id): group for group in steps_until_done(one)})
        assert_nothing_leaked(one)
    for entry in workload.requests:
        assert_same_samples(done[True, entry.group_id], done[False, entry.group_id])
    assert (engine.counters.steps, engine.counters.sampled_tokens, engine.counters.over_cap) == (
        plain.counters.steps,
        plain.counters.sampled_tokens,
        plain.counters.over_cap,
    )


KINDS = ("smollm", "qwen3_moe", "deepseek_v3", "deepseek_v32")
"""A family of each kind of attention; the others are slow."""


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_static_passes_of_every_family_equal_ordinary_ones_and_the_learner(name: str) -> None:
    entries = mixed_requests()
    groups = BuiltinEngine(family_model(name), TOKENIZER, BuiltinSettings(), repeat).run(entries)
    for group, wanted in zip(groups, BuiltinEngine(family_model(name), TOKENIZER, BuiltinSettings()).run(entries)):
        assert_same_samples(group, wanted)
    for group, entry in zip(groups, entries, strict=True):
        assert_learner_walks_the_same_path([group], entry.sampling.temperature or 1.0, family_model(name))


def test_static_passes_across_buckets_of_rows_and_keys_change_nothing() -> None:
    """Groups of 1 to 40 samples come and go, and responses grow past 128 positions."""
    model = {"max_position_embeddings": 300}
    rng = np.random.default_rng(2)
    entries = [
        request(f"g{n}", random_prompt(rng, 18, 90 + 10 * n), SamplingSettings(max_new_tokens=size), range(samples))
        for n, (samples, size) in enumerate(((1, 60), (16, 60), (17, 30), (40, 12)))
    ]
    engine = BuiltinEngine(tiny_model(**model), TOKENIZER, BuiltinSettings(), repeat)
    plain = BuiltinEngine(tiny_model(**model), TOKENIZER, BuiltinSettings())
    for group, wanted in zip(engine.run(entries), plain.run(entries), strict=True):
        assert_same_samples(group, wanted)
    assert engine._graphs is not None
    kept = [bucket for bucket in engine._graphs.graphs.buckets if bucket.kind == "decode"]
    assert {bucket.keys for bucket in kept} == {128, 256}
    assert {16, 96} <= {bucket.rows for bucket in kept}


@pytest.mark.parametrize("most", [16, 64, 512])
def test_static_passes_run_prompts_by_graph_or_in_their_own_size_with_the_same_bits(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's prompts, in chunks of up to 40 tokens beside decoding samples, are below or above what a graph runs."""
    monkeypatch.setattr(decode_graph, "MOST_PROMPT_ROWS", most)
    sizes = BuiltinSettings(max_batch_tokens=40, max_sequences=16, page_size=4)
    engine, plain = graph_engine(sizes), BuiltinEngine(tiny_model(), TOKENIZER, sizes)
    for group, wanted in zip(engine.run(mixed_requests()), plain.run(mixed_requests()), strict=True):
        assert_same_samples(group, wanted)
    assert_nothing_leaked(engine)
    assert engine._graphs is not None
    prompts = [bucket for bucket in engine._graphs.graphs.buckets if bucket.kind == "prompt"]
    assert prompts
    assert max(bucket.rows for bucket in prompts) <= most


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_static_passes_take_new_weights_without_a_new_capture(steps: int) -> None:
    """The weights come in place, in mid-response too; each token has the version that it was drawn with."""
    engine, plain = graph_engine(), make_engine()
    new = published_tensors(tiny_model(7))
    entries = mixed_requests()
    found = []
    for one in (engine, plain):
        for entry in entries:
            one.submit(entry)
        groups = [group for _ in range(steps) for group in one.step()]
        captured = captures(one)
        one.load_weights(new, version=1)
        groups += one.step()
        found.append({group.group_id: group for group in groups + steps_until_done(one)})
        assert one is plain or steps < 6 or captured > 0
    for entry in entries:
        assert_same_samples(found[0][entry.group_id], found[1][entry.group_id])
    captured = captures(engine)
    engine.load_weights(published_tensors(tiny_model()), version=2)
    again, wanted = engine.run(entries), make_engine()
    wanted.weight_version = 2
    for group, other in zip(again, wanted.run(entries), strict=True):
        assert_same_samples(group, other)
    # A few sizes may be new, but no size is captured again.
    assert captures(engine) - captured <= 6


def test_weights_that_move_are_refused() -> None:
    engine = graph_engine()
    engine.run(mixed_requests()[:1])
    engine.model.norm.data = engine.model.norm.data.clone()
    with pytest.raises(RuntimeError, match="has moved"):
        engine.load_weights(published_tensors(tiny_model(7)), version=1)


def test_abort_in_mid_response_leaves_static_passes_as_good_as_new() -> None:
    engine = graph_engine()
    for entry in mixed_requests():
        engine.submit(entry)
    for _ in range(4):
        engine.step()
    engine.abort()
    assert_nothing_leaked(engine)
    for group, wanted in zip(engine.run(mixed_requests()), make_engine().run(mixed_requests()), strict=True):
        assert_same_samples(group, wanted)


def test_padding_rows_write_to_the_scratch_slot_alone() -> None:
    """One sample in a pass of 16 rows: of the cache's other pages only its own change."""
    engine = graph_engine(BuiltinSettings(page_size=4, prefix_cache=False))
    engine.submit(request("g", (5, 6, 7, 8, 9), SamplingSettings(max_new_tokens=6, ignore_stop=True), (1,)))
    engine.step()
    own = engine._tables.slots_RS[engine._residents.samples[0].row, :11]
    before = engine._cache.rows.clone()
    engine.step()
    changed = (engine._cache.rows != before).any(-1).any(0).any(0).nonzero().flatten().tolist()
    assert set(changed) <= {0, int(own[5])}
    assert int(own[5]) in changed
    assert bool(engine._cache.rows[:, :, 0].isfinite().all())


def test_graphs_are_captured_once_and_those_unused_for_longest_are_dropped() -> None:
    done = []

    def capture(work: Work) -> Work:
        work()
        return lambda: done.append("replay")

    graphs = Graphs(capture)
    buckets = [Bucket(kind="decode", rows=16 * number, keys=128) for number in range(1, MOST_GRAPHS + 2)]
    for bucket in (buckets[0], *buckets[:MOST_GRAPHS], buckets[0], buckets[MOST_GRAPHS]):
        graphs.run(bucket, lambda rows=bucket.rows: done.append(rows))
    assert graphs.captured == MOST_GRAPHS + 1
    assert done[:4] == [16, "replay", "replay", 32]
    assert done.count("replay") == MOST_GRAPHS + 3
    assert graphs.buckets == (*buckets[2:MOST_GRAPHS], buckets[0], buckets[MOST_GRAPHS])


def test_row_bucket_grows_by_halves_and_stays_below_the_limit() -> None:
    found = sorted({row_bucket(count, 300) for count in range(1, 301)})
    assert found == [16, 32, 48, 64, 96, 128, 192, 256, 304]
    assert all(row_bucket(count, 300) >= count for count in range(1, 301))
    assert [row_bucket(count, 300) for count in (16, 17, 32, 33, 48, 49, 256, 257)] == [
        16,
        32,
        32,
        48,
        48,
        64,
        256,
        304,
    ]


def test_key_bucket_doubles_and_stays_below_the_longest_sequence() -> None:
    assert [key_bucket(longest, 1000) for longest in (1, 64, 65, 128, 129, 512, 513, 1000)] == [
        64, 64, 128, 128, 256, 512, 1008, 1008,
    ]  # fmt: skip
    assert key_bucket(1, 40) == 48


@pytest.mark.parametrize(
    ("setting", "device", "backend", "wanted"),
    [
        ("auto", "cuda", "triton", True),
        ("auto", "cuda", "torch", False),
        ("auto", "cpu", "triton", False),
        ("on", "cuda", "triton", True),
        ("off", "cuda", "triton", False),
    ],
)
def test_wants_graphs_follows_setting_device_and_backend(
    setting: str, device: str, backend: Backend, wanted: bool
) -> None:
    sizes = BuiltinSettings.model_validate({"cuda_graph": setting})
    assert wants_graphs(sizes, torch.device(device), backend) is wanted


def test_engine_cuda_graph_on_without_a_gpu_says_what_to_do() -> None:
    with pytest.raises(EngineUnavailableError, match="needs model.device=cuda and model.backend=triton.*cpu and torch"):
        make_engine(cuda_graph="on")


def test_a_cache_shorter_than_the_context_serves_what_it_can_hold_with_the_same_bits() -> None:
    """Tables and key windows end with the cache: 80 of the model's 128 positions."""
    small = BuiltinSettings(cache_tokens=80, page_size=8, max_sequences=4)
    work = [request("g", (4,) * 50, SamplingSettings(max_new_tokens=22, ignore_stop=True), (3,))]
    wanted = make_engine().run(work)[0]
    for engine in (BuiltinEngine(tiny_model(), TOKENIZER, small), graph_engine(small)):
        assert engine._tables.slots_RS.shape == (5, 80)
        assert_same_samples(engine.run(work)[0], wanted)
        assert_nothing_leaked(engine)
