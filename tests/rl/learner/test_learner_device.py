"""Runs whose network is on another device than the driver's bookkeeping, or in another type."""
