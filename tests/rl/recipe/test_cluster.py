"""Where a cluster listens."""

import pytest
from pydantic import ValidationError

from samepath.rl.recipe.cluster import RaySettings


def test_ray_settings_listen_on_loopback_unless_an_address_is_named() -> None:
    assert RaySettings().listen_address == "127.0.0.1"
    assert RaySettings(listen_address="192.0.2.7").listen_address == "192.0.2.7"


@pytest.mark.parametrize("address", ["127.0.0.2", "::1", "0.0.0.0", "::", "localhost", "my-machine", ""])
def test_ray_settings_refuse_an_address_that_ray_would_take_for_every_interface(address: str) -> None:
    with pytest.raises(ValidationError, match=r"listen_address must be 127\.0\.0\.1 or another IP address"):
        RaySettings(listen_address=address)


def test_ray_settings_refuse_to_say_where_a_joined_cluster_listens() -> None:
    assert RaySettings(address="auto").address == "auto"
    with pytest.raises(ValidationError, match=r"ray\.address=auto joins one"):
        RaySettings(address="auto", listen_address="192.0.2.7")
