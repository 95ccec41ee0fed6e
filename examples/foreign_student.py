"""Train a network of your own, a CNN and a bag of words, with the data and the loss of this package.

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
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 32, 7, 4), nn.ReLU(), nn.Conv2d(32, width, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        )
        self.visual_proj = nn.Linear(width * 16, width)
        self.text_encoder = nn.EmbeddingBag(30_522, width, padding_idx=0)
        self.box_head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 4), nn.Sigmoid())

    def forward(
        self, image: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, image_index: Tensor
    ) -> GroundingOutput:
        visual = self.visual_proj(self.cnn(image).flatten(1))[image_index]  # encode images once, then repeat per phrase
        text = self.text_encoder(tokens)
        box = self.box_head(torch.cat([visual, text], 1))
        return GroundingOutput(box=box, visual=visual, text=text, image_index=image_index)


def main(folder: Path) -> None:
    student = BagOfWords()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    criterion = epmvg.GroundingLoss(image_weight=1.5, text_weight=2.0)
    tokenizer = epmvg.create_model("tiny-resnet").tokenizer
    scenes = write_scenes(folder, sizes={"train": 24, "val": 0, "test": 0, "open": 0, "captions": 0})
    for batch in epmvg.make_loader("scenes", split="train", root=scenes, tokenizer=tokenizer, image_size=128):
        # With a teacher, add the argument teacher(batch.images, batch.phrases, batch.image_mask).
        losses = criterion(student(*batch.inputs), batch.boxes)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        print(f"loss {losses.total:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary) / "scenes")
