"""What the learner and the built-in engine call: a causal language model over packed rows, own or foreign.

Axes: N rows (a multiple of 16), D width, V vocabulary.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.model.key_store import KeyStore
from samepath.model.model_input import ModelInput
from samepath.model.shape import ModelShape
from samepath.model.trace import ForwardTrace


class Policy(nn.Module, ABC):
    """A network whose head is applied by the caller to the rows it needs (`head_logprobs`)."""

    backend: Backend
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward, which runs the layer again."""

    @property
    @abstractmethod
    def shape(self) -> ModelShape:
        """Sizes that replay and diagnostics need."""

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """[V, D] output matrix."""

    @property
    @abstractmethod
    def decoder_layers(self) -> list[nn.Module]:
        """The layers, in order: what several processes may hold in shards one by one."""

    @abstractmethod
    def forward(
        self, batch: ModelInput, store: KeyStore, trace: ForwardTrace, *, num_selected: int | None = None
    ) -> Tensor:
        """Final normed hidden states `[N, D]`; routes, selections and indexer losses go to `trace`."""

    def selection_bias(self, layer: int) -> Tensor | None:
        """[E] bias of a mixture-of-experts layer (global number) to be changed in place; None if its router has none."""
        return None

    def indexer_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn from the indexer's loss alone; none without an indexer."""
        return []
