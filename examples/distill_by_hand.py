"""The whole method in plain PyTorch: a teacher, a student, the loss of eq. 8, and the saved student.

python examples/distill_by_hand.py FOLDER [TEACHER]

TEACHER is a folder that `epmvg teacher train` wrote, or an open_clip model's configuration; without one the teacher is
a small ViT with random weights, from which nothing can be learned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import epmvg
from epmvg.data.synthetic.scenes import write_scenes

SIZES = {"train": 24, "val": 4, "test": 4, "open": 0, "captions": 0}
VIT = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def main(folder: Path, teacher_name: str | None) -> None:
    folder.mkdir(parents=True)
    if teacher_name is None:
        (folder / "vit.json").write_text(json.dumps(VIT), encoding="utf-8")
    scenes = write_scenes(folder / "scenes", sizes=SIZES)

    torch.manual_seed(0)
    student = epmvg.create_model("tiny-resnet").train()
    if teacher_name is None:
        teacher = epmvg.ClipTeacher(folder / "vit.json", "random")  # frozen
    else:
        teacher = epmvg.ClipTeacher(teacher_name)
    criterion = epmvg.GroundingLoss(giou_weight=1.0, image_weight=1.5, text_weight=2.0)  # lambda, alpha, beta
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    loader = epmvg.make_loader(
        "scenes", split="train", root=scenes, tokenizer=student.tokenizer, image_size=student.image_size, batch_size=32
    )
    for batch in loader:  # I images, P phrases
        output = student(*batch.inputs)
        embeddings = teacher(batch.images, batch.phrases, batch.image_mask)  # [I, E] and [P, E]
        losses = criterion(output, batch.boxes, embeddings)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        print(", ".join(f"{name} {term:.3f}" for name, term in losses.terms.items()))
    epmvg.save(student, folder / "student")  # without the teacher
    print(folder / "student")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "by-hand"), sys.argv[2] if len(sys.argv) > 2 else None)
