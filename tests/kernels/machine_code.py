"""What a compiled kernel does, free of names and line numbers: two kernels of one fingerprint have the same bits and the same speed.

A cubin is an ELF file. Its sections `.text.…` hold the machine's instructions, `.nv.constant…` the constants that they read; the others hold names,
line numbers and what the driver needs.
"""

import hashlib
import struct


def instructions(cubin: bytes) -> bytes:
    """Bytes of all sections of instructions and of constants, in the file's order.

    Raises ValueError on anything but a 64-bit little-endian ELF file.
    """
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"a cubin must be a 64-bit little-endian ELF file; got one that starts with {cubin[:6]!r}")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_bytes, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<II4Q", cubin, table + number * entry_bytes) for number in range(count)]
    names = headers[names_at][4]
    found = []
    for name_at, kind, _, _, offset, size in headers:
        name = cubin[names + name_at : cubin.index(b"\0", names + name_at)]
        # A section of kind 8 takes room when the program runs and none in the file.
        if name.startswith((b".text.", b".nv.constant")) and kind != 8:
            found.append(cubin[offset : offset + size])
    return b"".join(found)


def fingerprint(cubin: bytes) -> str:
    """Twelve hexadecimal digits of the instructions."""
    return hashlib.sha256(instructions(cubin)).hexdigest()[:12]
