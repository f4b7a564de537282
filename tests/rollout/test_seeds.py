from samepath.rollout.seeds import seed_of


def test_seed_of_keeps_its_parts_apart() -> None:
    """A seed decides samples, so it must stay the same from version to version; 12 and 3 are not 1 and 23."""
    assert seed_of(0, 3, 1, 2) == 2589667392710413240
    assert seed_of(0, 12, 3) != seed_of(0, 1, 23)
