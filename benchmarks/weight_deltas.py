"""Bytes that a version of the weights crosses with, whole and told as changes of the one before, in float32 and rounded to bfloat16.

    samepath run recipes/smollm2_arithmetic.yaml name=step rl.steps=1 rl.prompts_per_step=8 learner.ranks=1 runtime=inline checkpoint.every=1 \
        evaluation.every=0 task.num_held_out=8 tracking.kind=jsonl
    python -m benchmarks.weight_deltas runs/step/reference runs/step/checkpoints/step-000001
"""

import argparse
import time
from pathlib import Path

import torch

from samepath.model.files.policy_files import load_policy, policy_tensors
from samepath.rollout.weights.changes import LastVersion
from samepath.rollout.weights.mark import header, require_equal
from samepath.rollout.weights.outgoing import Outgoing
from samepath.rollout.weights.publication import arrived


def main() -> None:
    """Tell one checkpoint folder as changes of another and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    before, after = (dict(policy_tensors(load_policy(path, "own", "torch"))) for path in (asked.before, asked.after))
    print(
        "| engines | numbers changed | whole, MB | told as changes, MB | saved | telling, s (processor) |\n"
        + "|---" * 6
        + "|"
    )
    for dtype in (torch.float32, torch.bfloat16):
        print(
            _row(*({name: tensor.detach().to(dtype) for name, tensor in one.items()} for one in (before, after)), dtype)
        )


def _row(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], dtype: torch.dtype) -> str:
    last = LastVersion()
    outgoing = Outgoing(before.items(), 64 << 20, last)
    list(outgoing)
    outgoing.header(0)
    started, worked = time.perf_counter(), time.process_time()
    outgoing = Outgoing(after.items(), 64 << 20, last)
    buckets = list(outgoing)
    head = outgoing.header(1)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - worked
    come = arrived(head, buckets, stays=True)
    for name, change in come.changes.items():
        change.write(before[name])
    require_equal(header(1, after), {name: come.tensors.get(name, before[name]) for name in head.marks}, "this program")
    numbers = sum(tensor.numel() for tensor in after.values())
    whole = sum(len(one.values) for bucket in buckets for one in bucket if one.places is None) // dtype.itemsize
    changed = sum(len(one.places) for bucket in buckets for one in bucket if one.places is not None)
    cells = (
        str(dtype).removeprefix("torch."),
        f"{changed / numbers:.2%}" + (f", and {whole / numbers:.1%} in tensors that cross whole" if whole else ""),
        f"{head.size_bytes / 1e6:.1f}",
        f"{head.sent_bytes / 1e6:.1f}",
        f"{1 - head.sent_bytes / head.size_bytes:.1%}",
        f"{seconds:.2f} ({cpu_s:.2f})",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
