"""What the doctor can find: a name for each kind, what it means, what it does to a training or score, and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weight = Literal["error", "warning"]
"""An error cannot be used as it is; a warning can, but is probably not what was meant."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding."""

    title: str
    cure: str
    weight: Weight = "error"


KINDS: dict[str, Kind] = {
    # lines and keys
    "line-encoding": Kind("lines that are not UTF-8", "Save the file as UTF-8."),
    "line-json": Kind("lines that are not a JSON object", "Mend or delete the lines."),
    "key-missing": Kind("rows without a key they need", "A row needs image, phrase and bbox."),
    "key-renamed": Kind("rows with a key under another name", "Rename the key as said beside each row."),
    "value-type": Kind("values of the wrong type", "bbox is four numbers; image, phrase and split are texts."),
    "row-refused": Kind("rows that the reader of this format refuses", "Mend them at their source, or leave them out."),
    # boxes
    "box-number": Kind("boxes with NaN or infinity", "Take the box from its source again, or delete the row."),
    "box-outside": Kind(
        "boxes that leave their image by more than a pixel",
        "Check whether boxes and photo have the same scale; clip the box, or delete the row.",
    ),
    "box-empty": Kind("boxes of no width or height", "Draw the box again, or delete the row."),
    "box-inverted": Kind("boxes of negative width or height", "Swap the corners, or delete the row."),
    "box-thin": Kind("boxes at most a pixel wide or high", "Draw the box again, or delete the row.", "warning"),
    "box-corners": Kind(
        "bbox looks like corners [x0, y0, x1, y1], and is read as [x, y, width, height]",
        "Write [x0, y0, x1 - x0, y1 - y0].",
    ),
    "box-sizes": Kind(
        "boxes look as if [x, y, width, height] had been taken for corners", "Undo one conversion: bbox is x, y, w, h."
    ),
    "box-centre": Kind(
        "bbox looks like [centre x, centre y, width, height], and is read as [x, y, width, height]",
        "Write [x - width / 2, y - height / 2, width, height].",
    ),
    "box-scaled": Kind(
        "boxes look drawn on copies of another size", "Multiply every number by the image's width / the copy's."
    ),
    "box-rotated": Kind(
        "boxes stated with a rotation",
        "Look at the boxes: only the upright box around a turned one is used.",
        "warning",
    ),
    "box-0-1": Kind("boxes look normalised to 0..1", "Multiply x and width by the image's width, y and height by its."),
    "box-0-100": Kind(
        "boxes look given in per cent of the sides",
        "Multiply x and width by the image's width / 100, y and height by its height / 100.",
    ),
    "box-0-1000": Kind(
        "boxes look normalised to 0..1000", "Multiply x and width by the image's width / 1000, y and height alike."
    ),
    # phrases
    "phrase-empty": Kind("phrases without a word", "Write the phrase, or delete the row."),
    "phrase-long": Kind(
        "phrases longer than the tokens a model reads: the end is cut off",
        "Shorten the phrase, or give the model a greater length.",
        "warning",
    ),
    "phrase-unknown": Kind(
        "phrases without a word that BERT's vocabulary knows",
        "Write them in words, or give the model a tokenizer of their language.",
        "warning",
    ),
    "phrase-control": Kind("phrases with control or invisible characters", "Remove the characters.", "warning"),
    "phrase-markup": Kind("phrases with HTML tags or entities", "Unescape and strip the markup.", "warning"),
    "phrase-unicode": Kind(
        "phrases in broken or not normalised Unicode",
        "Decode once with the right encoding, normalise to NFC.",
        "warning",
    ),
    "side-word": Kind(
        "phrases that name a side of the image while the box lies on the other",
        "Look at the pictures: is the photo mirrored, or is the side somebody's own left?",
        "warning",
    ),
    # rows against rows
    "row-twice": Kind("rows stated more than once", "Delete the copies: each counts as one more row.", "warning"),
    "id-twice": Kind("ids that stand on different rows", "Give each row an id of its own, or none.", "warning"),
    "phrase-two-boxes": Kind(
        "phrases with different boxes in one image: where these are far apart, one answer is scored wrong",
        "Make the phrases tell their boxes apart, or know this share as a bound of accuracy.",
        "warning",
    ),
    # images
    "image-path": Kind("image names that are no path, or lead out of the root", "Give the folder of all with --root."),
    "image-spelling": Kind(
        "image names spelled otherwise than their files, which are found all the same",
        "Write the names as the files are called: other programs may not find them.",
        "warning",
    ),
    "image-animated": Kind(
        "images with several frames, of which the first is used", "Save the frame that the rows are about.", "warning"
    ),
    "image-missing": Kind("images that do not exist", "Fetch the photos, or give their folder with --root."),
    "image-empty": Kind("image files of zero bytes", "Fetch the photo again."),
    "image-torn": Kind("images that break off or cannot be decoded", "Fetch or save the photo again."),
    "image-foreign": Kind("files that are no picture this program reads", "Convert the photo to JPEG or PNG."),
    "image-bomb": Kind("images of more pixels than are opened", "Scale the photo down, and its boxes."),
    "size-stated": Kind(
        "images of another size than their rows state", "State the file's own size, or fetch that file."
    ),
    "image-turned": Kind(
        "photos turned by their EXIF tag, with boxes drawn on the unturned pixels",
        "Remove the orientation tag, or turn the boxes: photos are opened upright here.",
    ),
    # splits
    "split-same-image": Kind("images in two splits", "Keep the image in one split.", "warning"),
    "split-same-look": Kind("images that look the same in two splits", "Keep one of the two.", "warning"),
    "list-same-image": Kind("images for evaluation that stand in the list", "Leave them out of the score.", "warning"),
    "list-same-look": Kind("images for evaluation that look like one of the list", "Leave them out.", "warning"),
    "split-unnamed": Kind("rows without a split, where others have one", "Name their split.", "warning"),
    "split-missing": Kind(
        "splits that training needs and no row names",
        "Deal images out with `epmvg data split FILE 0.8/0.1/0.1 --out NEW`, or name your splits with "
        "data.train_split and data.val_split.",
    ),
    "split-empty": Kind("splits without rows", "Fetch the annotations of this split."),
    "split-no-photos": Kind("splits without photos", "Fetch the photos, or give their folder with --root."),
}
