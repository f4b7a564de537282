"""What a group can come to need of the cache: reserved as a whole before it starts, so that no sample stalls later."""


def pages_needed(prompt_tokens: int, max_new_tokens: int, group_size: int, page_size: int) -> int:
    """Pages to prefill the prompt and to fork every sample with room for its longest response."""
    shared = prompt_tokens // page_size
    whole = -(-(prompt_tokens + max_new_tokens) // page_size)
    return shared + 1 + group_size * (whole - shared)
