"""Which rows are held out: a digest of the text decides, so that equal texts are in one split whatever else the options say."""

import hashlib


def is_held_out(text: str, share: float) -> bool:
    """Whether a row with this text is never trained on; of many texts, about this share is held out."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64
