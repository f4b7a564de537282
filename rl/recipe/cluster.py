"""Settings of the Ray cluster."""

from pydantic import BaseModel, ConfigDict, Field


class RaySettings(BaseModel):
    """The cluster under `runtime: ray`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(
        "local", description="`local` starts a cluster on this machine, `auto` joins a running one, or host:port"
    )
    object_store_bytes: int = Field(512 << 20, ge=80 << 20, description="shared memory of a local cluster, bytes")
    learner_gpus: float = Field(
        1.0,
        gt=0,
        le=1,
        description="with `model.device: cuda`: GPUs of the learner; a fraction shares one with workers",
    )
