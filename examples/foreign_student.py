"""A student with nothing of ours in it, a CNN and a bag of words, learns by our loss from our data.

python examples/foreign_student.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import epmvg
from epmvg.core.types import GroundingOutput
from epmvg.data.synthetic.scenes import write_scenes


class BagOfWords(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 32, 7, 4), nn.ReLU(), nn.Conv2d(32, width, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        )
        self.look = nn.Linear(width * 16, width)
        self.read = nn.EmbeddingBag(30_522, width, padding_idx=0)
        self.box = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 4), nn.Sigmoid())

    def forward(
        self, image: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, image_index: Tensor
    ) -> GroundingOutput:
        seen = self.look(self.see(image).flatten(1))[image_index]  # an image is seen once, then handed to its phrases
        read = self.read(tokens)
        return GroundingOutput(
            box=self.box(torch.cat([seen, read], 1)), visual=seen, text=read, image_index=image_index
        )


def main(folder: Path) -> None:
    student = BagOfWords()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    loss_of = epmvg.GroundingLoss(image_weight=1.5, text_weight=2.0)
    tokenizer = epmvg.create_model("tiny-resnet").tokenizer
    scenes = write_scenes(folder, sizes={"train": 24, "val": 0, "test": 0, "open": 0, "captions": 0})
    for batch in epmvg.make_loader("scenes", split="train", root=scenes, tokenizer=tokenizer, image_size=128):
        loss = loss_of(
            student(*batch.inputs), batch.boxes
        )  # with a teacher: , teacher(batch.images, batch.phrases, batch.image_mask)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        print(f"loss {loss.total:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary) / "scenes")
