"""What a forward pass reports besides its result: routes, selections, expert load, the indexer's loss.

A layer that is run again (activation checkpointing recomputes it in the backward) reports nothing new: the first report stands.

Axes: N rows, R rows counted (some perhaps several times), L layers, X experts chosen, E experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class ForwardTrace:
    """Filled layer by layer during one forward pass. The flags say what the caller wants recorded.

    No dataclass: whoever shards layers (FSDP) copies the dataclasses that he hands them, and a copy would hear what was meant for this.
    """

    __slots__ = (
        "amounts",
        "best",
        "captured",
        "compared",
        "fingerprints",
        "indexer_losses",
        "live_routes",
        "output_errors",
        "record_fingerprints",
        "routes",
        "train_indexer",
    )

    def __init__(
        self,
        *,
        record_fingerprints: bool = False,
        train_indexer: bool = False,
        amounts: tuple[int, ...] = (),
        compared: tuple[int, ...] = (),
    ) -> None:
        self.record_fingerprints = record_fingerprints
        """Hash each row's attended key set."""
        self.train_indexer = train_indexer
        """Compute the indexer's own loss (needs gradients)."""
        self.amounts = amounts
        """Numbers A of keys, for each of which the attention that falls on the indexer's best is measured, over all keys; empty measures nothing."""
        self.compared = compared
        """Numbers of keys, for each of which attention's output over the indexer's best is compared with the pass's own; part of `amounts`."""
        self.routes: list[Tensor] = []
        """One [N, X] int64 per mixture-of-experts layer, in order: the ids that were used."""
        self.live_routes: list[Tensor] = []
        """The same from the live router; equal to `routes` without replay."""
        self.fingerprints: list[Tensor] = []
        """One [N] int64 per sparse layer."""
        self.indexer_losses: list[Tensor] = []
        """One [N] per layer, nats, with gradient to the indexer only."""
        self.captured: list[Tensor] = []
        """One [N, A] per sparse layer, shares of the row's attention on the indexer's best keys."""
        self.best: list[Tensor] = []
        """The same on the keys that have the most."""
        self.output_errors: list[Tensor] = []
        """One [N, number compared] per sparse layer: |output over the selected keys − output| / |output|."""

    def record_routes(self, place: int, used_NX: Tensor, live_NX: Tensor) -> None:
        """Report the `place`-th mixture-of-experts layer."""
        if place == len(self.routes):
            self.routes.append(used_NX)
            self.live_routes.append(live_NX)

    def record_fingerprint(self, place: int, fingerprint_N: Tensor) -> None:
        """Report the selection of the `place`-th sparse layer."""
        if place == len(self.fingerprints):
            self.fingerprints.append(fingerprint_N)

    def record_indexer_loss(self, place: int, loss_N: Tensor) -> None:
        """Report the loss of the `place`-th sparse layer's indexer."""
        if place == len(self.indexer_losses):
            self.indexer_losses.append(loss_N)

    def record_captured(self, place: int, share_NA: Tensor, best_NA: Tensor) -> None:
        """Report what share of the `place`-th sparse layer's attention its indexer's best keys hold, and the best keys that there are."""
        if place == len(self.captured):
            self.captured.append(share_NA)
            self.best.append(best_NA)

    def record_output_errors(self, place: int, output_ND: Tensor, of_amount: Callable[[int], Tensor]) -> None:
        """Report how far the `place`-th sparse layer's output over so many selected keys lies from its output in this pass, if asked for."""
        if self.compared and place == len(self.output_errors):
            size_N = output_ND.norm(dim=-1).clamp(min=torch.finfo(output_ND.dtype).tiny)
            errors = [(of_amount(amount) - output_ND).norm(dim=-1) / size_N for amount in self.compared]
            self.output_errors.append(torch.stack(errors, 1))

    def indexer_loss(self, rows_R: Tensor, num_rows: int) -> Tensor:
        """The share that these rows have in the mean over all layers and `num_rows` rows, nats, on the CPU; 0 without an indexer.

        The shares of a batch's passes add up to the batch's mean, wherever it is cut.
        """
        if not self.indexer_losses:
            return torch.zeros(())
        losses_LN = torch.stack(self.indexer_losses)
        return losses_LN[:, rows_R.to(losses_LN.device)].sum().cpu() / (len(losses_LN) * num_rows)

    def to_cpu(self) -> None:
        """Bring routes and fingerprints to the CPU in one go; losses stay where their gradient flows."""
        for records in (self.routes, self.live_routes, self.fingerprints):
            if records and records[0].device.type != "cpu":
                records[:] = torch.stack(records).cpu().unbind()

    def stacked_routes(self) -> Tensor:
        """[N, L_moe, X] int16; empty middle axis for a dense model."""
        return torch.stack(self.routes, 1).to(torch.int16)

    def stacked_fingerprints(self) -> Tensor:
        """[N, L_sparse] int64."""
        return torch.stack(self.fingerprints, 1)
