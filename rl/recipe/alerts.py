"""Settings of the alerts: a switch for each rule, and where its threshold lies."""

from pydantic import BaseModel, ConfigDict, Field


class AlertSettings(BaseModel):
    """What is said, once, when a run's numbers go wrong. Each rule has a switch of its name; docs/alerts.md says what each one sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failed_share: bool = Field(True, description="say when too many responses have no usable reward")
    failed_share_above: float = Field(
        0.1, ge=0, le=1, description="share of a step's responses without one above which that is said"
    )
    failed_counted: bool = Field(True, description="say when failed rollouts are counted as scored ones")
    first_failure: bool = Field(True, description="say the first failure of each kind, with its message")
    one_row: bool = Field(True, description="say when there is only one training row")
    no_spread: bool = Field(True, description="say when no group has two different rewards")
    no_spread_steps: int = Field(5, ge=1, le=1000, description="steps in a row without spread after which that is said")
    truncated: bool = Field(True, description="say when responses run into sampling.max_new_tokens")
    truncated_share: float = Field(1.0, gt=0, le=1, description="share of a step's responses from which on it is said")
    off_centre: bool = Field(True, description="say when the advantages of a group do not add up to 0")
    starved_part: bool = Field(True, description="say when a part of the reward never pays")
    starved_part_steps: int = Field(20, ge=2, le=10_000, description="steps in which it paid nothing")
    starved_dataset: bool = Field(True, description="say when nothing is learned from one dataset of several")
    starved_dataset_steps: int = Field(
        20, ge=2, le=10_000, description="steps without a token of it to learn from, while there are some of others"
    )
    parted_parts: bool = Field(True, description="say when the first part of the reward falls while the total rises")
    parted_parts_drop: float = Field(
        0.1, gt=0, le=1e6, description="fall of the first part, from one window to another, that counts; reward units"
    )
    parted_parts_steps: int = Field(10, ge=2, le=10_000, description="steps of a window whose means are compared")
    accuracy_falls: bool = Field(True, description="say when held-out accuracy falls from its best")
    accuracy_falls_drop: float = Field(
        0.1, gt=0, le=1, description="smallest fall that counts, beside three standard errors of the difference"
    )
    no_gradient: bool = Field(True, description="say when rewards differ and yet no update has a gradient")
    denominators: bool = Field(True, description="say when the token weights of an update do not add up to 1")
    denominators_off: float = Field(1e-3, gt=0, le=1, description="largest distance of their sum from 1")
    nonfinite: bool = Field(True, description="say when a number of the learner is not finite, or costs an update")
    mask_never: bool = Field(True, description="say when the off-policy mask takes nothing out although it should")
    mask_never_sequences: int = Field(
        20, ge=1, le=1_000_000, description="sequences above `delta`, none of them masked, after which that is said"
    )
    mask_always: bool = Field(True, description="say when the off-policy mask takes out nearly every bad answer")
    mask_always_share: float = Field(
        0.9, gt=0, le=1, description="masked share of those with negative advantage from which on that is said"
    )
    mask_always_steps: int = Field(2, ge=1, le=1000, description="steps in a row after which it is said")
    ratio: bool = Field(True, description="say when the mean importance ratio is off 1 at lag 0, or stands still at 1")
    ratio_off: float = Field(0.05, gt=0, le=10, description="largest distance of the mean ratio from 1")
    ratio_steps: int = Field(2, ge=1, le=1000, description="steps in a row after which it is said")
    gap: bool = Field(True, description="say when sampler and learner disagree at equal weights")
    gap_nats: float = Field(
        0.05,
        ge=0,
        le=100,
        description="largest gap of an engine that rounds otherwise, nats; where sampler and learner are one program any gap above 0 is said",
    )
    route_flips: bool = Field(True, description="say when the live router often leaves the recorded route")
    route_flips_share: float = Field(0.25, gt=0, le=1, description="share of (row, layer) above which that is said")
    route_flips_at_lag_0: float = Field(0.1, ge=0, le=1, description="the same of rows at equal weights")
    route_flips_steps: int = Field(2, ge=1, le=1000, description="steps in a row after which it is said")
    entropy_collapse: bool = Field(True, description="say when entropy collapses while the reward does not rise")
    entropy_collapse_share: float = Field(
        0.2, gt=0, lt=1, description="share of the first steps' entropy below which it has collapsed"
    )
    length_runaway: bool = Field(True, description="say when responses grow while the reward does not")
    length_runaway_factor: float = Field(2.0, gt=1, le=1000, description="growth over the first steps' mean length")
    baseline_steps: int = Field(
        5,
        ge=1,
        le=1000,
        description="steps at the beginning that entropy and length are compared with, and in a row after which they are said",
    )
    kl_runaway: bool = Field(True, description="say when the KL to the reference runs away")
    kl_runaway_nats: float = Field(2.0, gt=0, le=1000, description="KL above which that is said, nats per token")
    kl_runaway_factor: float = Field(
        5.0, gt=1, le=1e6, description="or so many times the largest of the ten steps before, from 0.05 nats on"
    )
    kl_runaway_steps: int = Field(2, ge=1, le=1000, description="steps in a row after which it is said")
    reference_moves: bool = Field(
        True, description="say when the KL to the reference stays exactly 0 although it learns"
    )
    logged_zero: bool = Field(True, description="say when a number is exactly 0 that others of its step contradict")
    setting_ignored: bool = Field(True, description="say when a step's counts are not those of the recipe")
    data_position: bool = Field(True, description="say when a step asks for rows that are another step's")
    memory_growth: bool = Field(True, description="say when a process of the run grows from step to step")
    memory_growth_share: float = Field(0.2, gt=0, le=100, description="growth within the window that is said")
    memory_growth_steps: int = Field(
        30, ge=9, le=10_000, description="steps of the window; the ten after a start do not count"
    )
