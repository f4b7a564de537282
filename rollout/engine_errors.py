"""Errors of engines that end a run with a message for the user."""


class EngineUnavailableError(RuntimeError):
    """The engine that the recipe asks for cannot run here; the message says what to do."""


class EngineRecordError(RuntimeError):
    """An engine returned a record that does not belong to its tokens: training on it would be training on wrong data."""


class RolloutPoolError(RuntimeError):
    """Workers failed more often than the recipe allows, or did not start."""


class ClusterLostError(ConnectionError):
    """The Ray cluster has ended or does not answer any more; nothing can be asked of the learner or of the workers on it."""
