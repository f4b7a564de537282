"""What sampler, learner and diagnostics need to know of any model, whoever implements it."""

from typing import Protocol


class ModelShape(Protocol):
    """Sizes under the names of the published `config.json`; `ModelConfig` is one, and every adapter of a foreign model gives one."""

    @property
    def vocab_size(self) -> int:
        """V, tokens."""
        ...

    @property
    def num_hidden_layers(self) -> int:
        """L."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence, tokens."""
        ...

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the mixture-of-experts layers, ascending; empty for a dense model."""
        ...

    @property
    def n_routed_experts(self) -> int:
        """E; 0 for a dense model."""
        ...

    @property
    def num_experts_per_tok(self) -> int:
        """X, experts chosen a token; 0 for a dense model."""
        ...

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Global numbers of the layers whose attention selects its keys, ascending; empty without an indexer."""
        ...

    @property
    def window_heads(self) -> int:
        """Heads whose scores of one window are held at once, 0 for none, which bounds a window's size (`plan_spans`)."""
        ...
