import pytest
from pydantic import ValidationError

from samepath.rollout.sampling_settings import SamplingSettings, resolve_sampling


def test_resolve_sampling_overrides_are_checked() -> None:
    recipe = SamplingSettings(top_p=0.9, max_new_tokens=10)
    assert resolve_sampling(recipe, {}) is recipe
    resolved = resolve_sampling(recipe, {"temperature": 0.3})
    assert (resolved.temperature, resolved.top_p, resolved.max_new_tokens) == (0.3, 0.9, 10)
    with pytest.raises(ValidationError, match="Extra inputs"):
        resolve_sampling(recipe, {"temprature": 0.3})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        resolve_sampling(recipe, {"top_p": 1.5})
