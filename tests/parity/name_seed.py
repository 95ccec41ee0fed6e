"""Weights and inputs that are a pure function of names and seeds, so that parity needs no large files.

`fill(state_dict)` overwrites every floating tensor of a state dict that carries published key names and shapes.
`batch(...)` is the input of the references. Both use numpy's legacy RandomState, whose stream never changes.
"""

import zlib

import numpy as np
import torch


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of one published parameter or buffer."""
    u = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).uniform(-1, 1, size=shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1.0 + 0.5 * u
    if name.endswith("running_mean"):
        return 0.1 * u
    if name.endswith("decoder.V"):
        return 0.05 * u  # small: large values make the gates amplify rounding a thousandfold
    if u.ndim <= 1:
        v = 1.0 + 0.1 * u if name.endswith("weight") else 0.05 * u
        return 0.2 * v if name.endswith(("bn3.weight", "downsample.1.weight")) else v
    field = int(np.prod(u.shape[2:])) if u.ndim > 2 else 1
    return np.asarray(u * np.sqrt(6.0 / (u.shape[1] * field + u.shape[0] * field)).astype(np.float32))


def fill(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fill in place; integer buffers stay as they are."""
    for name, tensor in state_dict.items():
        if torch.is_floating_point(tensor):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(value(name, tuple(tensor.shape)).astype(np.float32))))
    return state_dict


def batch(size: int, length: int, side: int = 640, seed: int = 7) -> dict[str, torch.Tensor]:
    """Smooth pictures (already normalised), letterboxed with zeros, and random words.

    Image mask 1 = padding, word mask 1 = word; target cxcywh in 0..1.
    """
    rng = np.random.RandomState(seed)
    img = np.zeros((size, 3, side, side), np.float32)
    mask = np.ones((size, side, side), np.int32)
    shapes = [(640, 427), (480, 640), (640, 640), (360, 640), (640, 500), (427, 640), (608, 512), (333, 544)]
    ys, xs = np.mgrid[0:side, 0:side].astype(np.float32) / side
    ids, words = np.zeros((size, length), np.int64), np.zeros((size, length), np.int64)
    box = np.zeros((size, 4), np.float32)
    for b in range(size):
        h, w = (int(v * side // 640) for v in shapes[b % len(shapes)])
        top, left = round((side - h) / 2.0 - 0.1), round((side - w) / 2.0 - 0.1)
        for c in range(3):
            f, ph = rng.uniform(1, 9, 4), rng.uniform(0, 6.28, 2)
            pat = np.sin(6.28 * f[0] * ys + 6.28 * f[1] * xs + ph[0]) + np.cos(
                6.28 * f[2] * ys - 6.28 * f[3] * xs + ph[1]
            )
            img[b, c, top : top + h, left : left + w] = pat[top : top + h, left : left + w]
        mask[b, top : top + h, left : left + w] = 0
        n = min([6, 20, 11, 4, 9, 15, 7, 13][b % 8], length)
        ids[b, 0], ids[b, 1 : n - 1], ids[b, n - 1] = 101, rng.randint(1000, 29000, n - 2), 102
        words[b, :n] = 1
        cx, cy = rng.uniform(0.35, 0.65, 2)
        bw, bh = rng.uniform(0.1, 0.5, 2)
        box[b] = (cx, cy, bw, bh)
    made = {"img": img, "img_mask": mask, "word_id": ids, "word_mask": words, "target": box}
    return {name: torch.from_numpy(array) for name, array in made.items()}
