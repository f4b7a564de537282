import pytest
from pydantic import ValidationError

from samepath.rl.recipe.tracking import TrackingSettings


@pytest.mark.parametrize("uri", ["file:///tmp/x", "./mlruns", "sqlite://", "http://", "ftp://host/x"])
def test_settings_unusable_uri_is_refused_with_what_to_write(uri: str) -> None:
    with pytest.raises(ValidationError, match="sqlite:///mlflow.db"):
        TrackingSettings(uri=uri)


@pytest.mark.parametrize("uri", ["http://ann:secret@host:5000", "http://ann@host"])
def test_settings_credentials_in_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        TrackingSettings(uri=uri)
