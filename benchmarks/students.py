"""Full-size TransVG against a plain re-creation of the published computation, on the same weights in one run.

OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 python benchmarks/students.py [--model transvg-r101] [--rounds 5]

An image of 4:3 at input size 640; phrases of 8 tokens, padded to 20 in the plain version as published.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from epmvg.core.types import GroundingOutput
from epmvg.distill.losses import GroundingLoss
from reference import PHRASES
from reference.memory import peak_mb
from reference.suite import optimizer_of
from reference.timing import interleaved, timer
from reference.work import Work


class Bench:
    def __init__(self, name: str) -> None:
        self.work = Work(name)
        self.student, self.plain = self.work.student, self.work.plain()
        self.loss_of = GroundingLoss(box="l1")

    def ours(self, phrases: int) -> Tensor:
        words = self.student.tokenize(PHRASES[:phrases])
        output: GroundingOutput = self.student(
            *self.work.image_batch(1), *words, torch.zeros(phrases, dtype=torch.int64)
        )
        return output.box

    def plainly(self, phrases: int) -> Tensor:
        return self.work.predict_plainly(self.plain, phrases)

    def our_step(self, images: int, phrases: int, optimizer: torch.optim.Optimizer) -> None:
        words = self.student.tokenize(PHRASES[:phrases] * images)
        output = self.student(*self.work.image_batch(images), *words, torch.arange(images).repeat_interleave(phrases))
        self.loss_of(output, torch.full((images * phrases, 4), 0.4)).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain_step(self, batch: int, optimizer: torch.optim.Optimizer) -> None:
        box = self.plain(*self.work.image_batch(batch), *self.work.full_length((PHRASES * batch)[:batch]))
        (box - 0.4).abs().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def compare(rounds: int, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, float]:
    """Run both in turn; return medians in seconds and their ratio."""
    own, plain = (statistics.median(times) for times in interleaved([timer(ours), timer(theirs)], rounds))
    return {"ours": round(own, 4), "plain": round(plain, 4), "ratio": round(own / plain, 3)}


def peak_of_a_step(model: str, who: str, batch: int) -> int:
    """Peak memory in MB of two training steps in a process of their own."""
    command = [sys.executable, __file__, "--model", model, "--step", who, "--batch", str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="transvg-r50", choices=["transvg-r50", "transvg-r101"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="of the step whose memory is measured")
    parser.add_argument("--step", choices=["ours", "plain"], help="only take two steps and print the peak in MB")
    arguments = parser.parse_args()
    bench = Bench(arguments.model)
    if arguments.step:
        bench.student.train(), bench.plain.train()
        if arguments.step == "ours":
            del bench.plain
        optimizer = optimizer_of(bench.student if arguments.step == "ours" else bench.plain)
        for _ in range(2):
            if arguments.step == "ours":
                bench.our_step(arguments.batch, 1, optimizer)
            else:
                bench.plain_step(arguments.batch, optimizer)
        print(peak_mb())
        return

    figures: dict[str, object] = {"model": arguments.model, "threads": torch.get_num_threads()}
    bench.student.eval(), bench.plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(bench.ours(7), bench.plainly(7), atol=1e-5, rtol=0)  # the same function
        figures["one phrase"] = compare(arguments.rounds, lambda: bench.ours(1), lambda: bench.plainly(1))
        figures["seven phrases"] = compare(arguments.rounds, lambda: bench.ours(7), lambda: bench.plainly(7))
    bench.student.train(), bench.plain.train()
    ours, theirs = optimizer_of(bench.student), optimizer_of(bench.plain)
    step = compare(
        max(2, arguments.rounds // 2), lambda: bench.our_step(2, 7, ours), lambda: bench.plain_step(8, theirs)
    )
    step |= {"ours": round(step["ours"] / 14, 4), "plain": round(step["plain"] / 8, 4)}
    step["ratio"] = round(step["ours"] / step["plain"], 3)
    figures["training step, seconds a phrase (7 an image against 1)"] = step
    figures["peak MB of a step with 8 images"] = {
        who: peak_of_a_step(arguments.model, who, arguments.batch) for who in ("ours", "plain")
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
