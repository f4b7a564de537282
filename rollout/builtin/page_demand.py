"""What of the cache a group needs: at least, so that it can ever run, and to begin with. Comes without torch."""


def most_pages(prompt_tokens: int, max_new_tokens: int, page_size: int) -> int:
    """Pages of one sample at its longest; its last token is never run."""
    return -(-(prompt_tokens + max_new_tokens - 1) // page_size)


def first_pages(prompt_tokens: int, group_size: int, page_size: int) -> int:
    """Pages with which a group can decode: the prompt's full ones together, and for each sample one that it writes to."""
    return prompt_tokens // page_size + group_size
