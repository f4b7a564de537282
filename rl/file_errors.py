"""What an error of the file system is about, and what can be done, in a sentence."""

import errno


def said(error: OSError) -> str:
    """What the system said, with the file that it is about.

    Example:
        said(PermissionError(13, "Permission denied", "/runs")) == "/runs: Permission denied"
    """
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{files}: {error.strerror}" if files else str(error.strerror or error).rstrip(".")


def advice(error: OSError) -> str:
    """What can be done about it, a sentence or nothing."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return " Free space there (or lower checkpoint.keep), then go on with `samepath resume`."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return " Make it writable for this user, or set runs_dir to a folder that is."
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return " Something else stands in the way: move it, or set runs_dir or name to a place that is free."
        case _:
            return ""
