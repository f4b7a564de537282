"""What is kept of each token: small, and the same when it is read back."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.tracking.jsonl import plain, rollout_from_plain
from samepath.rl.tracking.token_columns import (
    CHOICES,
    role_letters,
    routes,
    short,
    support_sizes,
    unpacked,
    weight_versions,
)
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from samepath.rollout.types import Support
from tests.conversations import drawn_call
from tests.rl.sampled import rollout

NO_FLIPS = np.zeros((0, 2), np.int64)


@given(
    st.lists(
        st.floats(width=32).filter(lambda value: value == 0 or 1e-18 < abs(value) < 1e4 or not math.isfinite(value)),
        max_size=20,
    )
)
def test_short_any_number_is_what_four_digits_of_it_are(values: list[float]) -> None:
    for got, value in zip(short(np.array(values, np.float32)), values, strict=True):
        wanted = float(f"{value:.4g}")
        assert got == wanted or (math.isnan(got) and math.isnan(wanted))


def test_support_sizes_and_weight_versions_are_of_the_drawn_tokens_of_all_segments() -> None:
    first, second = drawn_call([2, 3], [4, 5, 6]), drawn_call([2, 8], [9])
    versions = first.weight_version.copy()
    versions[first.trained] = [3, 3, 4]
    support = Support(counts=np.array([2, 0, 1], np.int32), ids=np.array([4, 7, 6], np.int32))
    made = rollout("a", 0, 1.0, segments=(replace(first, weight_version=versions, support=support), second))
    assert support_sizes(made) == (2, 0, 1, 0)
    assert weight_versions(made)[:2] == ((3, 2), (4, 1))
    assert sum(count for _, count in weight_versions(made)) == 4
    assert support_sizes(rollout("a", 0, 1.0, segments=(second,))) == ()


def test_routes_are_those_of_the_rows_that_predict_the_drawn_tokens() -> None:
    call = drawn_call([2, 3], [4, 5, 6])
    routes_TLX = np.arange(5 * 2 * 2, dtype=np.int16).reshape(5, 2, 2)
    routes_TLX[3] = -1
    made = rollout("a", 0, 1.0, segments=(replace(call, routes=routes_TLX),))
    kept = routes(made, (1, 3), np.array([[2, 1, 0, 7]]))
    assert kept is not None
    shown = unpacked(kept)
    assert shown["layers"] == [1, 3]
    # Tokens 4, 5 and 6 stand at positions 2, 3 and 4: rows 1, 2 and 3 predict them.
    assert shown["chosen"] == [routes_TLX[1:4, layer].tolist() for layer in (0, 1)]
    assert shown["live"] == [{}, {2: [0, 7]}]
    one = TrackedRollout(step=1, group_id="a", sample_index=0, prompt_text="", response_text="", routes=kept)
    assert rollout_from_plain(json.loads(json.dumps(plain(one)))).routes == kept


def test_routes_of_a_dense_model_or_of_very_many_choices_are_not_kept() -> None:
    call = drawn_call([2, 3], [4, 5])
    for shape in ((4, 0, 0), (4, CHOICES // 2 + 1, 2)):
        made = rollout("a", 0, 1.0, segments=(replace(call, routes=np.zeros(shape, np.int16)),))
        assert routes(made, range(shape[1]), NO_FLIPS) is None


def test_unpacked_refuses_what_is_none() -> None:
    kept = routes(
        rollout("a", 0, 1.0, segments=(replace(drawn_call([2], [4]), routes=np.zeros((2, 1, 1), np.int16)),)),
        (1,),
        NO_FLIPS,
    )
    assert kept is not None
    for changes in (
        {"chosen": "%%%"},
        {"chosen": "AAAA"},
        {"chosen": ""},
        {"live": ((0, 1, 0),)},
        {"live": ((0,),)},
        {"experts": 0},
    ):
        with pytest.raises(ValueError):
            unpacked(replace(kept, **changes))  # type: ignore[arg-type]


def test_role_letters_name_what_became_of_each_token() -> None:
    assert role_letters(np.array([2, 1, 0])) == "tmo"
