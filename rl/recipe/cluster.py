"""Settings of the Ray cluster."""

import ipaddress

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samepath.rollout.pool.settings import RESERVED_CPUS, Placing

LOOPBACK = "127.0.0.1"


class RaySettings(BaseModel):
    """The cluster under `runtime: ray`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(
        "local", description="`local` starts a cluster on this machine, `auto` joins a running one, or host:port"
    )
    listen_address: str = Field(
        LOOPBACK,
        description="where a `local` cluster listens. 127.0.0.1 keeps it to this machine; with another IP address of this machine "
        "Ray listens on all its interfaces, and whoever reaches them can run code here",
    )
    start_timeout_s: float = Field(
        120.0, gt=0, description="longest wait for a cluster to start, or for one to be joined, seconds"
    )
    object_store_bytes: int = Field(512 << 20, ge=80 << 20, description="shared memory of a local cluster, bytes")
    learner_gpus: float = Field(
        1.0,
        gt=0,
        le=1,
        description="with `model.device: cuda`: GPUs of the learner; a fraction shares one with workers",
    )

    learner_placing: Placing = Field(
        "any", description="nodes for the learner's ranks, as `rollout.placing` for workers"
    )
    learner_cpus: float = Field(
        RESERVED_CPUS, gt=0, description="with `learner_placing` other than `any`: CPUs that a rank reserves"
    )

    @model_validator(mode="after")
    def _reserves(self) -> "RaySettings":
        if self.learner_placing == "any" and self.learner_cpus != RESERVED_CPUS:
            raise ValueError(
                f"ray.learner_cpus={self.learner_cpus:g} is reserved with ray.learner_placing pack or spread; got any, which reserves none"
            )
        return self

    @model_validator(mode="after")
    def _listens_where_it_says(self) -> "RaySettings":
        if self.listen_address == LOOPBACK:
            return self
        if self.address != "local":
            raise ValueError(
                f"ray.listen_address={self.listen_address} is about a cluster that the run starts; ray.address={self.address} joins one, "
                "which listens as it was started. Leave one of them out."
            )
        try:
            address = ipaddress.ip_address(self.listen_address)
        except ValueError:
            address = None
        # Beside 127.0.0.1 Ray takes addresses of the loopback interface for others, and listens everywhere.
        if address is None or address.is_loopback or address.is_unspecified:
            raise ValueError(
                f"ray.listen_address must be {LOOPBACK} or another IP address that others know this machine by; got {self.listen_address!r}"
            )
        return self
