from samepath.rl.recipe.evaluation import EvaluationSettings
from samepath.rollout.sampling_settings import SamplingSettings


def test_evaluation_sampling_keeps_lengths_and_stops_and_takes_its_own_temperature_and_top_p() -> None:
    training = SamplingSettings(
        temperature=0.7, top_k=5, top_p=0.8, min_p=0.1, max_new_tokens=9, stop_strings=("\n",), stop_token_ids=(3,)
    )
    expected = SamplingSettings(
        temperature=0.2, top_p=0.95, max_new_tokens=9, stop_strings=("\n",), stop_token_ids=(3,)
    )
    assert EvaluationSettings(temperature=0.2, top_p=0.95).sampling(training) == expected
    assert not EvaluationSettings().sampling(training).truncates
