"""COCO Caption, Web CapFilt, NoCaps and Flickr30K in miniature."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from instructkit.world.captions import ROTATE, caption, relation_caption
from instructkit.world.release import Release, side_of
from instructkit.world.scene import Scene, draw_scene

CAPTIONS = 5


def write_coco(release: Release) -> None:
    """Karpathy's file; captions of val and test pictures all differ."""
    size = release.size
    counts = {"train": size.training(56), "restval": size.training(4), "val": size.other, "test": size.benchmark}
    images: list[dict[str, Any]] = []
    for split, count in counts.items():
        for scene, captions in _different(release, split, count, lambda s, n: caption(s, n, size=n < 3)):
            number = 1 + len(images)
            folder = "train2014" if split == "train" else "val2014"
            name = f"COCO_{folder}_{number:012}.jpg"
            images.append({"filepath": folder, **_karpathy(number - 1, name, split, captions), "cocoid": number})
            release.picture(f"{folder}/{name}", scene)
        images += release.flawed(split.replace("restval", "train"), images[len(images) - count :])
    release.write_json("dataset_coco.json", {"images": images, "dataset": "coco"})


def write_flickr(release: Release) -> None:
    """Karpathy's file and the original one; captions tell how things stand to each other."""
    counts = {"train": release.size.other, "val": release.size.other, "test": release.size.benchmark}
    images: list[dict[str, Any]] = []
    lines: list[str] = []
    for split, count in counts.items():
        for scene, captions in _different(release, split, count, relation_caption):
            name = f"{1000000000 + 97 * len(images)}.jpg"
            images.append(_karpathy(len(images), name, split, captions))
            lines += [f"{name}#{place}\t{text}" for place, text in enumerate(captions)]
            release.picture(f"flickr30k-images/{name}", scene)
        images += release.flawed(split, images[len(images) - count :])
    release.write_json("dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    release.write_text("results_20130124.token", lines)


def write_web(release: Release) -> None:
    """BLIP's list of URLs, and the pictures as img2dataset leaves them."""
    pairs: list[dict[str, Any]] = []
    for number in range(release.size.training(400)):
        scene = release.draw("train", number, "train", draw_scene)
        pairs.append({"url": f"http://pictures.example/{number}.jpg", "caption": caption(scene, number).lower()})
        release.picture(_web_picture(number), scene)
    for place, flaw in enumerate(release.plant("train", len(pairs))):
        if flaw.picture is not None:
            release.spoil(_web_picture(len(pairs)), release.pictures[_web_picture(place)], flaw.picture)
        pairs.append({**pairs[place], **flaw.change})
    release.write_json("ccs_synthetic_filtered_large.json", pairs)


def write_nocaps(release: Release) -> None:
    """Val with captions and domains, and the list of test pictures.

    Things come in colours that no training picture shows: none of them in-domain, one near-domain, all out-of-domain.
    """
    domains = ("in-domain", "near-domain", "out-domain")
    images, annotations = [], []
    for number in range(release.size.benchmark):
        domain = domains[number % 3]
        unseen = (0, 1, 6)[number % 3]
        scene = release.draw("val", number, "test", partial(draw_scene, least=2, unseen=unseen))
        entry = _nocaps_image(number, "val")
        images.append({**entry, "domain": domain})
        release.picture(f"val/{entry['file_name']}", scene)
        for place in range(10):
            annotations.append(
                {"image_id": number, "id": number + release.size.benchmark * place}
                | {"caption": caption(scene, place, size=place < 6)}
            )
    for place, flaw in enumerate(release.plant("val", release.size.benchmark)):
        images.append({**images[place], "id": release.size.benchmark + place, **flaw.change})
    head = {"licenses": [], "info": {"version": "0.1"}}
    release.write_json("nocaps_val_4500_captions.json", {**head, "images": images, "annotations": annotations})
    tests = [_nocaps_image(number, "test") for number in range(release.size.other)]
    for number, entry in enumerate(tests):
        release.picture(f"test/{entry['file_name']}", release.draw("test", number, "test", draw_scene))
    release.write_json("nocaps_test_image_info.json", {**head, "images": tests})


def _different(
    release: Release, split: str, count: int, tell: Callable[[Scene, int], str]
) -> list[tuple[Scene, list[str]]]:
    """Scenes with their captions; outside training no two pictures share a caption."""
    found: list[tuple[Scene, list[str]]] = []
    seen: set[str] = set()
    number = 0
    while len(found) < count:
        scene = release.draw(split, number, side_of(split.replace("restval", "train")), _several)
        captions = [tell(scene, (number + place) % ROTATE if split == "train" else place) for place in range(CAPTIONS)]
        number += 1
        if side_of(split) == "train" or not seen & set(captions):
            seen |= set(captions)
            found.append((scene, captions))
    return found


def _web_picture(number: int) -> str:
    return f"images/{number // 10_000:05}/{number:09}.jpg"


def _several(rng: random.Random) -> Scene:
    return draw_scene(rng, 2, 6)


def _karpathy(place: int, name: str, split: str, captions: list[str]) -> dict[str, Any]:
    sentences = [
        {
            "tokens": text.lower().rstrip(".").split(),
            "raw": text,
            "imgid": place,
            "sentid": CAPTIONS * place + n,
        }
        for n, text in enumerate(captions)
    ]
    return {
        "sentids": [sentence["sentid"] for sentence in sentences],
        "filename": name,
        "imgid": place,
        "split": split,
        "sentences": sentences,
    }


def _nocaps_image(number: int, split: str) -> dict[str, Any]:
    name = f"{number:04x}{'c0ffee' if split == 'val' else 'decade'}209f42"
    return {
        "id": number,
        "open_images_id": name,
        "height": 112,
        "width": 112,
        "coco_url": f"https://pictures.example/nocaps/{split}/{name}.jpg",
        "file_name": f"{name}.jpg",
        "license": 0,
        "date_captured": "2018-11-06 11:04:33",
    }
