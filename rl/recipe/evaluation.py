"""Settings of the evaluation on held-out prompts."""

from pydantic import BaseModel, ConfigDict, Field

from samepath.rollout.sampling_settings import SamplingSettings


class EvaluationSettings(BaseModel):
    """Accuracy on held-out prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(0, ge=0, description="steps between evaluations; 0 only before and after training")
    samples: int = Field(1, ge=1, description="responses to each held-out prompt")
    temperature: float = Field(0.0, ge=0, le=10, description="0 takes the best token")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the fewest tokens whose probability reaches p; 1 keeps all")
    full_reward: float = Field(1.0, description="a response is right if the reward's first part is at least this")

    def sampling(self, training: SamplingSettings) -> SamplingSettings:
        """Sampling of held-out prompts: the training's lengths and stops at a temperature and top-p of their own."""
        changes = {"temperature": self.temperature, "top_k": 0, "top_p": self.top_p, "min_p": 0.0}
        return training.model_copy(update=changes)
