"""The releases of the mini-world: in the authors' layouts, by the world's rule, the same for the same seed."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.conversion.convert import convert
from instructkit.conversion.convert_all import Result, convert_all
from instructkit.conversion.miniatures import MINIATURE
from instructkit.data.dataset import REJECTED, load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.world import scene as world
from instructkit.world.build import WHOLE, WRITERS, build
from instructkit.world.captions import caption
from instructkit.world.facts import HELD_IN, HELD_OUT, PARTS, TEXT, VALUES, count_facts, salient, table, told
from instructkit.world.release import SIZES, Release, side_of
from instructkit.world.scene import UNSEEN, draw, draw_scene, side
from instructkit.world.sheet import write_sheet
from instructkit.world.text import write


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    root = tmp_path_factory.mktemp("world") / "raw"
    return {release.name: release for release in build(root, seed=0, size="tiny")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """A larger world without its pictures."""
    root = tmp_path_factory.mktemp("small")
    return {release.name: release for release in build(root, size="small", pictures=False)}


@pytest.fixture(scope="module")
def results(releases: dict[str, Release], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Result]:
    root = releases["gqa"].root.parent
    made = convert_all(root, tmp_path_factory.mktemp("data"), every_split=True, check_images=True)
    return {(result.source, result.split): result for result in made}


@pytest.fixture(scope="module")
def examples(results: dict[tuple[str, str], Result]) -> dict[tuple[str, str], list[Example]]:
    found = {key: result.outcome for key, result in results.items() if result.outcome is not None}
    return {key: list(load_examples(outcome.folder)) for key, outcome in found.items()}


def test_there_is_a_writer_for_every_source_of_the_paper() -> None:
    papers = {source.name for source in sources.sources() if source.role != "extra" and source.examples_of is None}
    assert set(WRITERS) == papers
    roles = {source.name: source.role for source in sources.sources()}
    assert set(HELD_IN) == {name for name in WRITERS if roles[name] == "held-in"}
    assert set(HELD_OUT) == {name for name in WRITERS if roles[name] == "held-out"}


def test_every_split_converts_but_for_what_is_planted_and_every_picture_and_film_decodes(
    results: dict[tuple[str, str], Result], releases: dict[str, Release]
) -> None:
    splits = {(name, split) for name in WRITERS for split in sources.source(name).splits}
    assert {key for key, result in results.items() if result.outcome is not None} == splits
    for key in splits:
        outcome = results[key].outcome
        assert outcome is not None
        made = outcome.manifest
        planted = [flaw for split, flaw in releases[key[0]].planted if split == key[1]]
        reasons = [line["reason"] for line in map(json.loads, (outcome.folder / REJECTED).open())]
        assert len(reasons) == len(planted), key
        assert all(any(flaw.reason in reason for reason in reasons) for flaw in planted), key
        assert made.miniature
        assert not results[key].bad
        assert made.media is not None
        assert made.media["checked"] > 0
        for what in ("missing", "broken"):
            assert made.media[what] == sum(flaw.picture == what for flaw in planted)
        assert outcome.agrees is None
        assert "differs" not in outcome.summary()


def test_training_sizes_differ_by_a_hundred(examples: dict[tuple[str, str], list[Example]]) -> None:
    sizes = [len(examples[name, "train"]) for name in HELD_IN]
    assert max(sizes) >= 100 * min(sizes)


def test_meta_says_what_is_asked_and_whether_a_caption_tells_it(
    releases: dict[str, Release], examples: dict[tuple[str, str], list[Example]]
) -> None:
    """No line of a ledger is lost, and what it says is what the table says."""
    wrong = {"iconqa": {"pictures"}}
    for name, release in releases.items():
        own = {example.id: example for (source, _), rows in examples.items() if source == name for example in rows}
        noted = {key for key in own if own[key].meta.get("fact")}
        assert noted == set(release.ledger), name
        asking = (HELD_IN | HELD_OUT)[name]
        for key in noted:
            meta = own[key].meta
            assert meta["told"] in ("told", "untold")
            assert meta["fact"] in asking.facts
            assert meta["form"] in {asking.form} | wrong.get(name, set())
    asked = [example.meta for rows in examples.values() for example in rows if example.meta.get("fact") == "kind"]
    shares = Counter(meta["told"] for meta in asked)
    assert 0.35 < shares["told"] / shares.total() < 0.65


def test_rule_of_the_world() -> None:
    """Facts are asked for in held-in datasets, forms stand in the text, the pair of both in neither."""
    print(table())
    trained = {(asking.form, fact) for asking in (*HELD_IN.values(), *TEXT) for fact in asking.facts}
    held_in_facts = {fact for asking in HELD_IN.values() for fact in asking.facts}
    text_forms = {asking.form for asking in TEXT}
    for name, asking in HELD_OUT.items():
        for fact in asking.facts:
            assert set(PARTS.get(fact, (fact,))) <= held_in_facts, (name, fact)
            assert (asking.form, fact) not in trained, (name, fact)
        assert asking.form in text_forms, name
    assert {fact for asking in (*HELD_IN.values(), *HELD_OUT.values()) for fact in asking.facts} == set(VALUES)
    held_in_tasks = {sources.source(name).task for name in HELD_IN}
    assert not held_in_tasks & {"visual_reasoning", "classification", "visual_dialog", "video_qa"}


def test_every_fact_that_a_dataset_is_to_ask_for_is_asked_for(small: dict[str, Release]) -> None:
    for release in small.values():
        asking = (HELD_IN | HELD_OUT)[release.name]
        if asking.form in ("caption", "description"):
            continue
        own = {entry["fact"] for entry in release.ledger.values()}
        missing = set(asking.facts) - own
        if release.name == "llava_conversation":  # its further turns ask for texture and place
            missing -= {"texture", "place"}
        assert not missing, release.name


def test_training_shows_no_scene_of_the_tests(
    releases: dict[str, Release], examples: dict[tuple[str, str], list[Example]]
) -> None:
    seen = set()
    for (name, split), rows in examples.items():
        release = releases[name]
        drawn = {str(release.root / path): scene for path, scene in {**release.pictures, **release.films}.items()}
        if (name, split) == ("flickr30k", "all"):
            continue  # all splits at once
        for example in rows:
            for path in (*example.images, *([example.video] if example.video else [])):
                found = [scene for where, scene in drawn.items() if where.endswith(f"/{path}")]
                assert found, (name, path)
                assert {side(digest) for scene in found for digest in scene.digests} == {side_of(split)}
                seen.add(side_of(split))
    assert seen == {"train", "test"}


def test_captions_tell_at_most_half_and_nothing_else() -> None:
    for number in range(300):
        scene = draw(0, "telling", number, "train", draw_scene)
        assert 2 * len(told(scene)) <= count_facts(scene)
        mentioned = salient(scene)
        assert {kind for kind, _ in told(scene)} == {thing.kind for thing in mentioned}
        left = [thing for thing in scene.things if thing not in mentioned]
        assert not ({"small"} & {thing.size for thing in mentioned} and {"big"} & {thing.size for thing in left})
        text = caption(scene, number)
        assert not any(f" {thing.kind}" in text for thing in left)
        assert not any(word in text for word in (*world.TEXTURES, "top", "middle", "bottom"))
        assert sum(f" {size} " in f" {text.lower()}" for size in world.SIZES) == 1


def test_nocaps_has_combinations_that_training_never_shows(
    releases: dict[str, Release], examples: dict[tuple[str, str], list[Example]]
) -> None:
    unseen = [f" {colour} {kind}" for kind, colour in UNSEEN.items()]
    for (name, split), rows in examples.items():
        if split == "train":
            for example in rows:
                texts = [*example.references, *example.answers]
                assert not any(pair in f" {text.lower()}" for text in texts for pair in unseen), name
    by_domain = {"in-domain": set(), "near-domain": set(), "out-domain": set()}  # type: dict[str, set[int]]
    for example in examples["nocaps", "val"]:
        scene = releases["nocaps"].pictures[example.images[0]]
        assert isinstance(scene, world.Scene)
        count = sum(thing.colour == UNSEEN[thing.kind] for thing in scene.things)
        by_domain[example.meta["domain"]].add(count if count < len(scene.things) else 9)
    assert by_domain == {"in-domain": {0}, "near-domain": {1}, "out-domain": {9}}


def test_captions_of_test_pictures_for_retrieval_all_differ(small: dict[str, Release]) -> None:
    seen: dict[str, set[str]] = {}
    pictures = Counter[str]()
    for name in ("coco_caption", "flickr30k"):
        for image in json.loads(next(small[name].root.glob("dataset_*.json")).read_text())["images"]:
            if not image["sentences"]:
                continue  # planted, to be rejected
            split = f"{name}/{image['split']}"
            captions = {entry["raw"] for entry in image["sentences"]}
            assert len(captions) == 5
            if image["split"] in ("val", "test"):
                assert not seen.setdefault(split, set()) & captions
                seen[split] |= captions
                pictures[split] += 1
    assert pictures["coco_caption/test"] == pictures["flickr30k/test"] == 100


def test_annotators_disagree_and_leave_blanks(examples: dict[tuple[str, str], list[Example]]) -> None:
    rows = examples["vqav2", "train"]
    assert {len(example.answers) for example in rows} == {10}
    agreeing = [Counter(example.answers).most_common(1)[0][1] for example in rows]
    assert min(agreeing) >= 7
    assert 10 in agreeing
    assert any("" in example.answers for example in rows)
    assert any("unanswerable" in example.answers for example in rows)


def test_the_same_seed_gives_the_same_files(tmp_path: Path, releases: dict[str, Release]) -> None:
    root = releases["gqa"].root.parent
    list(build(tmp_path / "again", seed=0, size="tiny", pictures=False))
    list(build(tmp_path / "other", seed=1, size="tiny", pictures=False))
    same = other = 0
    for path in (tmp_path / "again").rglob("*.*"):
        name = path.relative_to(tmp_path / "again")
        if name.name == WHOLE:
            continue  # says that pictures are left out
        assert path.read_bytes() == (root / name).read_bytes(), name
        same += 1
        twin = tmp_path / "other" / name
        other += not twin.is_file() or path.read_bytes() != twin.read_bytes()
    assert same > 100
    assert other > 0.8 * same


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "real.json").write_text("{}")
    with pytest.raises(UserError, match=r"gqa: holds no miniature release"):
        next(build(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["gqa"]
    with pytest.raises(UserError, match="no world has the size 'huge'; there are tiny, small, full"):
        next(build(tmp_path / "b", size="huge"))


def test_a_file_in_the_place_of_a_release_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vqav2").write_text("mine")
    with pytest.raises(UserError, match=r"vqav2: holds no miniature release"):
        next(build(tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "draw_into",
    [lambda place: list(build(place)), lambda place: write_sheet(place, 0), write],
    ids=["releases", "sheet", "text"],
)
def test_what_cannot_be_written_is_told_by_name(draw_into: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    with pytest.raises(UserError, match=rf"^{place}.*: cannot be written \("):
        draw_into(place)


def test_the_sheet_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    write_sheet(tmp_path / "sheet.out", 0)
    assert (tmp_path / "sheet.out").read_bytes().startswith(b"\x89PNG")


def test_a_smaller_world_replaces_a_larger_one_whole(tmp_path: Path) -> None:
    release = next(build(tmp_path, pictures=False))
    (release.root / "left_over.json").write_text("{}")
    assert (release.root / MINIATURE).is_file()
    next(build(tmp_path, pictures=False))
    assert not (release.root / "left_over.json").exists()


def test_a_miniature_never_replaces_what_the_published_release_became(tmp_path: Path) -> None:
    release = Release(tmp_path / "raw" / "vsr", "vsr", 0, SIZES["tiny"])
    WRITERS["vsr"](release)
    release.finish(pictures=False)
    (release.root / MINIATURE).rename(tmp_path / MINIATURE)  # without it, this could be the published one
    folder = convert("vsr", release.root, tmp_path / "data", split="test").folder
    before = (folder / "manifest.json").read_bytes()
    (tmp_path / MINIATURE).rename(release.root / MINIATURE)
    with pytest.raises(UserError, match="was converted from the published release"):
        convert("vsr", release.root, tmp_path / "data", split="test", force=True)
    assert (folder / "manifest.json").read_bytes() == before
    assert convert("vsr", release.root, tmp_path / "data" / "world", split="test").manifest.miniature is True
