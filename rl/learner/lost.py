"""The learner, or one of its ranks, that is no more."""


class LearnerLostError(RuntimeError):
    """A process of the learner ended or did not answer in time; the message says which and what to do."""


GO_ON = "Go on from the last checkpoint with `samepath resume`."
"""What is left to do."""
