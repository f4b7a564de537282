"""The three spellings of a reward, and what is refused."""

import pytest
from pydantic import ValidationError

from samepath.rewards.settings import RewardSettings


def test_settings_string_is_one_part_named_after_the_function():
    settings = RewardSettings.model_validate("samepath.rewards.math:answer")
    assert list(settings.parts) == ["answer"]
    assert settings.parts["answer"].function == "samepath.rewards.math:answer"
    assert settings.main_part == "answer"
    assert settings.parts["answer"].weight == 1.0


def test_settings_mapping_of_parts_is_read_as_parts():
    short = {"answer": {"function": "a:f"}, "brevity": {"function": "b:g", "weight": 0.1, "options": {"max_tokens": 5}}}
    settings = RewardSettings.model_validate(short)
    assert settings == RewardSettings.model_validate({"parts": short})
    assert settings.parts["brevity"].options == {"max_tokens": 5}
    assert settings.main_part == "answer"


def test_settings_part_may_be_a_string():
    assert RewardSettings.model_validate({"parts": {"a": "m:f"}}).parts["a"].function == "m:f"


def test_settings_survive_a_round_trip():
    settings = RewardSettings.model_validate({"parts": {"function": "m:f"}, "timeout_s": 3})
    assert RewardSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    "data",
    [
        "no_colon",
        "m:",
        {"parts": {"a/b": "m:f"}},
        {"parts": {"a": {"function": "m:f", "weight": float("nan")}}},
        {"parts": {"a": "m:f"}, "timeout_s": 0},
        {"parts": {"a": "m:f"}, "num_workers": 0},
        {"parts": {"a": "m:f"}, "max_abs": 0},
        {"parts": {"a": "m:f"}, "max_abs": 1e13},
        {"parts": {"a": "m:f"}, "timeout": 1},
    ],
)
def test_settings_bad_input_is_refused(data):
    with pytest.raises(ValidationError):
        RewardSettings.model_validate(data)
