"""Settings of what is kept of a run, and where."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


class TrackingSettings(BaseModel):
    """Where metrics and rollouts go. The JSON lines in the run's folder are always written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlflow", "jsonl"] = Field(
        default="mlflow",
        description="`mlflow`: JSON lines and MLflow. `jsonl`: JSON lines only; MLflow is not imported.",
    )
    log_every: int = Field(
        default=1,
        ge=1,
        description="Steps between two lines on the console (without a terminal) and two sets of metrics and traces in MLflow; evaluations and "
        "the last step are always there, and metrics.jsonl and rollouts/ keep every step.",
    )
    report_share: float = Field(
        default=0.02,
        ge=0,
        le=0.5,
        description="Share of the run's time that keeping report.html up to date may take: a page that takes t seconds has t/share seconds to itself, "
        "the first one 1/share. 0: it is written when the run ends, and not before.",
    )
    uri: str = Field(
        default="sqlite:///mlflow.db",
        description="MLflow store. A relative sqlite path lies in the folder of all runs. Or http(s)://host:port of a server.",
    )
    experiment: str = Field(default="samepath", min_length=1, max_length=250, description="MLflow experiment's name.")
    traced_rollouts_per_step: int = Field(
        default=8,
        ge=0,
        le=512,
        description="Rollouts of each step that become MLflow traces; one costs some 40 ms.",
    )
    max_text_chars: int = Field(
        default=8000,
        ge=100,
        le=1_000_000,
        description="Prompt and response are cut to this many characters in an MLflow trace.",
    )
    max_queued_events: int = Field(
        default=1000,
        ge=10,
        le=100_000,
        description="Events that wait in memory; from half of it on they go to the queue file, and above it, or where that is full, they are dropped "
        "and counted.",
    )
    max_queue_file_mib: int = Field(
        default=256, ge=1, le=65536, description="Size of the file for events while the store does not answer, MiB."
    )
    start_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="Longest wait for the store when a run starts, seconds; then it goes on without.",
    )
    close_timeout_s: float = Field(
        default=20.0, gt=0, le=600, description="Longest wait at the end for what is still to be sent, seconds."
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if not (uri.startswith("sqlite:///") or (parts.scheme in ("http", "https") and parts.hostname)):
            raise ValueError(
                f"tracking.uri must begin with sqlite:/// or be http(s)://host:port; got {uri!r}. "
                "MLflow no longer takes a plain folder: use sqlite:///mlflow.db, or start a server and give its address."
            )
        if parts.password or (parts.username and parts.scheme != "sqlite"):
            raise ValueError(
                "tracking.uri must not hold a user name or password, because recipes are logged. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
            )
        return uri
