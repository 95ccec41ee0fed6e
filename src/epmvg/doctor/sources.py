"""Where the named data sets come from, and how large their splits are.

Counts are those of the official annotations: val and tests of refcoco, refcoco+ and refcocog-umd, referit and flickr30k
were counted in the files themselves; the train splits of the RefCOCO family and refcocog-google are published figures
(Yu et al., ECCV 2016; Nagaraja et al., ECCV 2016; Mao et al., CVPR 2016; images from TensorFlow Datasets' ref_coco and
gref). TransVG prints 54,127 and 60,103 phrases for ReferIt's train and test (from refer's cleaned refclef) and 427,193
for Flickr30k's train: nearer than `NEARLY`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

NEARLY = 0.001
"""A count that differs by a smaller share is not worth a finding: cleaned versions drop a few rows."""


@dataclass(frozen=True, slots=True)
class Source:
    """How to get a data set, and what it holds: split -> (images, phrases)."""

    annotations: str
    photos: str
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    note: str = ""

    def how(self) -> str:
        """Say where it comes from, in one sentence."""
        sizes = "; ".join(f"{split} {images:,} and {rows:,}" for split, (images, rows) in self.splits.items())
        return f"get {self.annotations}, and {self.photos}; images and phrases of each split: {sizes}."


_COCO = "COCO's train2014.zip (cocodataset.org, 82,783 photos, 13 GB) unpacked to images/mscoco/images/train2014"
_REFER = "of lichengunc/refer on GitHub (where its server is down, its issues 14 and 26 point to web.archive.org)"

SOURCES: dict[str, Source] = {
    "refcoco": Source(
        f"refcoco.zip {_REFER} with refs(unc).p and instances.json",
        _COCO,
        {"train": (16_994, 120_624), "val": (1_500, 10_834), "testA": (750, 5_657), "testB": (750, 5_095)},
    ),
    "refcoco+": Source(
        f"refcoco+.zip {_REFER} with refs(unc).p and instances.json",
        _COCO,
        {"train": (16_992, 120_191), "val": (1_500, 10_758), "testA": (750, 5_726), "testB": (750, 4_889)},
    ),
    "refcocog-umd": Source(
        f"refcocog.zip {_REFER} with refs(umd).p and instances.json",
        _COCO,
        {"train": (21_899, 80_512), "val": (1_300, 4_896), "test": (2_600, 9_602)},
    ),
    "refcocog-google": Source(
        f"refcocog.zip {_REFER} with refs(google).p and instances.json",
        _COCO,
        {"train": (24_698, 85_474), "val": (4_650, 9_536)},
        note="Google's split of RefCOCOg parts objects, not images, so that train and val share photos by design.",
    ),
    "referit": Source(
        "referit_*.json of ronghanghu/text_objseg (github.com/ronghanghu/text_objseg, exp-referit/data)",
        "the photos of SAIAPR TC-12 (imageclef.org/SIAPRdata, or saiapr_tc-12.zip of lichengunc/refer)",
        {"train": (8_995, 54_134), "val": (1_000, 5_842), "test": (9_994, 60_105)},
    ),
    "flickr30k": Source(
        "annotations.zip, train.txt, val.txt and test.txt of BryanPlummer/flickr30k_entities (github.com)",
        "flickr30k-images by the form of the University of Illinois (shannon.cs.illinois.edu/DenotationGraph)",
        {"train": (29_781, 427_226), "val": (1_000, 14_433), "test": (999, 14_481)},
    ),
}

_INDEX = "data/{0}/{0}_SPLIT.pth by the link in TransVG's README (djiajunustc/TransVG on GitHub)"

SOURCES |= {
    f"transvg-{flag}": replace(SOURCES[name], annotations=_INDEX.format(flag))
    for flag, name in {
        **{"unc": "refcoco", "unc+": "refcoco+", "gref": "refcocog-google", "gref_umd": "refcocog-umd"},
        **{"referit": "referit", "flickr": "flickr30k"},
    }.items()
}
