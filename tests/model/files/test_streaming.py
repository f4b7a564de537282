"""Memory of reading and converting a checkpoint in shards: the network's own and that of a shard, as the kernel counts it.

Measured in a process of its own as the highest resident set, which counts the mapped pages of a file that is being read.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.files.weight_files import INDEX_FILE
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer
from tests.families import family_config
from tests.fp8_checkpoints import quantise

SHARD_BYTES = 16 << 20
ROOM = 1.2
"""Shards above the network: one, and a fifth for the tensor that is being copied and what the allocator keeps."""
SIZES: dict[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "n_routed_experts": 32,
    "num_hidden_layers": 5,
}
"""26 million weights, the largest matrix 0.5 MiB."""

MEASURE = """
import sys
from pathlib import Path
from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.files.convert import Output, convert, find_source
from samepath.model.files.upcycle import Change, IndexerSizes

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

what, small, large, out = sys.argv[1:]

def run(source, target):
    if what == "load":
        return load_checkpoint(Path(source))
    change = Change() if what == "convert" else Change(dense=True)
    convert(find_source(source), Path(target), Output(max_bytes=SHARD), lambda _: None, change)

run(small, out + "-small")
Path("/proc/self/clear_refs").write_text("5")
before = peak()
kept = run(large, out)
print(peak() - before)
"""


def resettable() -> bool:
    """Whether the kernel lets a process begin its peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not resettable(), reason="needs /proc/self/clear_refs")


def save(path: Path, shard_bytes: int, **sizes: object) -> int:
    """Write a folder; returns the bytes of its network."""
    model = CausalLM(family_config("deepseek_v32", **sizes))
    model.initialise(0)
    save_checkpoint(model, path, max_bytes=shard_bytes)
    character_tokenizer("0123456789+-=abc").save(path)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def largest_file(path: Path) -> int:
    return max(file.stat().st_size for file in path.glob("*.safetensors"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(folder of `small` and `large` ones in float32, bytes of the large network)."""
    path = tmp_path_factory.mktemp("plain")
    save(path / "small", SHARD_BYTES)
    size = save(path / "large", SHARD_BYTES, **SIZES)
    assert (path / "large" / INDEX_FILE).is_file()
    assert size > 6 * SHARD_BYTES
    assert SHARD_BYTES // 2 < largest_file(path / "large") <= SHARD_BYTES + 65536
    return path, size


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The same in FP8."""
    path = tmp_path_factory.mktemp("fp8")
    save(path / "small", 2 * SHARD_BYTES)
    size = save(path / "large", 2 * SHARD_BYTES, **SIZES)
    for name in ("small", "large"):
        quantise(path / name, (128, 128))
    assert largest_file(path / "large") < SHARD_BYTES
    return path, size


def rise(what: str, path: Path) -> int:
    """Bytes by which the resident set's peak rises, after the same was done on a small folder."""
    code = MEASURE.replace("SHARD", str(SHARD_BYTES))
    words = [sys.executable, "-c", code, what, *map(str, (path / "small", path / "large", path / what))]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("stored", ["plain", pytest.param("fp8", marks=pytest.mark.slow)])
def test_load_checkpoint_takes_the_network_and_one_shard(stored: str, request: pytest.FixtureRequest) -> None:
    path, size = request.getfixturevalue(stored)
    risen, shard = rise("load", path), largest_file(path / "large")
    assert size < risen < size + ROOM * shard


@pytest.mark.parametrize("what", ["convert", pytest.param("dense", marks=pytest.mark.slow)])
def test_convert_takes_a_shard_read_and_a_shard_written_and_never_the_network(
    what: str, plain: tuple[Path, int]
) -> None:
    """The allocator may keep up to one more: tensors of the last file written are freed while those of the next are made."""
    path, size = plain
    risen = rise(what, path)
    assert (path / what / INDEX_FILE).is_file()
    assert risen < (2 + ROOM) * largest_file(path / "large") < size / 1.5
