"""COCO Caption: five and more human captions an image, in Karpathy's splits as the paper has them or in COCO's own."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from instructkit.data.folders import media_folder, spots
from instructkit.data.readers import Reject, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared import captions
from instructkit.sources._shared.captions import KarpathyImage

_KARPATHY = "dataset_coco.json"
_FILES = {
    "train": [_KARPATHY, "coco_karpathy_train.json", "captions_train2014.json", "captions_train2017.json"],
    "val": [_KARPATHY, "coco_karpathy_val.json", "captions_val2014.json", "captions_val2017.json"],
    "test": [_KARPATHY, "coco_karpathy_test.json"],
}

SOURCE = Source(
    name="coco_caption",
    title="COCO Caption",
    task="captioning",
    role="held-in",
    split="train",
    splits={
        "train": Split(
            (" | ".join(_FILES["train"]),),
            published=566_747,
            note="captions of Karpathy's train and restval; COCO's own train has 414,113 (2014) or 591,753 (2017)",
        ),
        "val": Split(
            (" | ".join(_FILES["val"]),),
            published=5_000,
            note="images of Karpathy's val; COCO's own val has 40,504 (2014) or 5,000 other ones (2017)",
        ),
        "test": Split((" | ".join(_FILES["test"]),), published=5_000, note="images of Karpathy's test"),
    },
    images="train2014/COCO_train2014_{image_id:012d}.jpg and val2014/; train2017/{image_id:012d}.jpg and val2017/",
    tree="""\
coco_caption/
├── dataset_coco.json                              (Karpathy's splits; files may lie in annotations/)
│   or coco_karpathy_{train,val,test}.json         (the same as BLIP has them)
│   or captions_{train,val}{2014,2017}.json        (COCO's own)
├── train2014/COCO_train2014_000000000009.jpg ...  (or images/train2014/ ..., or --images COCO)
└── val2014/COCO_val2014_000000000042.jpg ...""",
    licence="CC BY 4.0",
    home="https://cocodataset.org",
    record=KarpathyImage,
    citation="Chen et al. 2015, arXiv:1504.00325; splits: Karpathy and Fei-Fei 2015, arXiv:1412.2306",
)


def read(raw: Path, split: str) -> Reading:
    """Read the first of the split's files that is there; layouts `karpathy`, `karpathy lists` and `official <year>`."""
    path = require(raw, *spots(*_FILES[split]))
    prefix, each = f"coco_caption/{split}/", split == "train"
    root = media_folder(raw, "images")
    if path.name == _KARPATHY:
        splits = ("train", "restval") if split == "train" else (split,)
        convert = captions.karpathy_converter(prefix, splits, _karpathy_place, each=each)
        return Reading("karpathy", [path], captions.karpathy_images(path, splits), convert, root)
    if path.name.startswith("coco_karpathy"):
        convert = captions.list_converter(prefix, _listed_place, each=each)
        return Reading("karpathy lists", [path], json_list(path), convert, root)
    subset = path.stem.removeprefix("captions_")
    return Reading(
        layout=f"official {subset[-4:]}",
        files=[path],
        records=captions.coco_images(path),
        convert=captions.coco_converter(prefix, subset, each=each),
        media_root=root,
        warnings=[f"{path.name} is COCO's own split; the paper's is Karpathy's ({_KARPATHY})"],
    )


def _karpathy_place(image: KarpathyImage) -> tuple[str, str]:
    if image.cocoid is None or image.filepath is None:
        raise Reject("an image of COCO needs cocoid and filepath")
    if not image.filename.endswith(f"_{image.cocoid:012}.jpg"):
        raise Reject(f"cocoid {image.cocoid} is not the number in {image.filename}")
    return str(image.cocoid), f"{image.filepath}/{image.filename}"


def _listed_place(image: str) -> tuple[str, str]:
    number = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", PurePosixPath(image).stem)
    if number is None:
        raise Reject(f"{image!r} is not the path of an image of COCO")
    return str(int(number[1])), image
