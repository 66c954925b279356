"""The Python API: light to import, documented; its examples run on tiny models and a made-up release."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import instructkit as ik
from instructkit.evaluation.run import read_evaluation
from instructkit.training.recipe import launch_command, word
from tests import forks
from tests.evaluation.world import World
from tests.miniatures import write_release
from tests.ports import free_port
from tests.sources.clips import write_video

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ("photo.jpg", "a.jpg", "b.jpg", "before.jpg", "after.jpg")
ABSENT = {'device="cuda", dtype="bf16"': 'device="cpu"', '"flan-t5-xl"': '"runs/finetune/model"'}
"""What examples name and tests have not, and what stands in."""
RANK_VARIABLES = {"RANK", "WORLD_SIZE", "MASTER_PORT"}
RECIPE = """
output: runs/tiny
data: {train: [vqav2]}
towers: {vision: full, qformer: full, llm: full}
model: {vocabulary: 300}
training: {max_steps: 2, batch_size: 2, warmup_steps: 1, log_every: 1}
evaluation: {benchmarks: [vqav2], limit: 2}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    world = World(tmp_path_factory.mktemp("world"))
    for name in ("vqav2", "okvqa", "gqa"):
        world.benchmark(name)
    world.split("vqav2", "train")
    world.evaluate("vqav2", world.root / "report", limit=2)
    return world


@pytest.fixture
def place(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the examples name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.data, tmp_path / "data")
    (tmp_path / "runs" / "finetune").mkdir(parents=True)
    (tmp_path / "runs" / "finetune" / "model").symlink_to(world.model())
    write_release("vqav2", tmp_path / "releases" / "vqav2")
    for number, name in enumerate(PHOTOS):
        Image.new("RGB", (24, 16), (40 * number, 90, 200)).save(tmp_path / name)
    write_video(tmp_path / "film.mp4")
    configs = tmp_path / "recipes" / "configs"
    configs.mkdir(parents=True)
    (configs / "easy_vqa.yaml").write_text(RECIPE)
    (configs / "finetune.yaml").write_text(RECIPE.replace("full", "frozen", 1).replace("[vqav2], limit", "[], limit"))
    (tmp_path / "mine").mkdir()
    shutil.copy("photo.jpg", "mine")
    line = {"image": "photo.jpg", "instruction": "What was paid?", "answer": "12.50"}
    (tmp_path / "mine" / "train.jsonl").write_text((json.dumps(line) + "\n") * 4)
    return tmp_path


def documented() -> dict[str, Any]:
    """The API's objects, with the methods of its classes."""
    found: dict[str, Any] = {name: getattr(ik, name) for name in ik.__all__ if name != "sources"}
    found["sources"] = type(ik.sources).__call__
    for kind in (ik.Dataset, ik.Model, ik.Report, ik.Evaluated):
        methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
        found |= {f"{kind.__name__}.{name}": value for name, value in methods.items() if not name.startswith("_")}
    return found


def examples(name: str) -> list[doctest.Example]:
    text = inspect.getdoc(documented()[name]) or ""
    return doctest.DocTestParser().get_examples(text)


def source_of(example: doctest.Example) -> str:
    source = example.source
    for absent, instead in ABSENT.items():
        source = source.replace(absent, instead)
    return source


WITH_EXAMPLES = ["convert", "load_model", "evaluate", "sources", "Dataset", "Dataset.render", "Dataset.to_hf"]
WITH_EXAMPLES += ["Report.answers", "Model", "Model.ask", "Model.rank", "Model.attention", "Report"]


def test_all_is_documented() -> None:
    for name, what in documented().items():
        assert inspect.getdoc(what), name
    assert all(map(examples, [*WITH_EXAMPLES, "train"]))
    for name in ("convert", "load_model", "evaluate", "train", "Model.ask", "Model.rank", "Model.attention"):
        text = inspect.getdoc(documented()[name]) or ""
        assert all(part in text for part in ("Args:", "Returns:", "Raises:")), name


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_run(place: Path, name: str) -> None:
    """As they stand, in a folder that has what they name; a value that is shown has the type of what comes out."""
    names: dict[str, Any] = {"ik": ik, "load_model": ik.load_model}
    if name.startswith("Model.") or name == "evaluate":
        names["model"] = ik.load_model("runs/finetune/model", device="cpu")
    if name.startswith("Dataset."):
        names["data"] = ik.Dataset("data/vqav2/train")
    if name.startswith("Report"):
        names["report"] = ik.evaluate("runs/finetune/model", "vqav2", out="runs/easy_vqa", limit=2).report()
    for example in examples(name):
        source = source_of(example)
        if name.startswith("Report"):
            source = source.replace('"easy_vqa"', '"vqav2"')
        tree = ast.parse(source)
        if isinstance(tree.body[-1], ast.Expr):
            value = eval(source, names)
            if example.want:
                try:
                    shown = ast.literal_eval(example.want.strip())
                except (ValueError, SyntaxError):
                    continue
                assert type(value) is type(shown), source
        else:
            exec(source, names)


def test_the_modules_own_example_runs(place: Path) -> None:
    """The lines at the head of `instructkit`, but for the training, which has a test of its own."""
    lines = [line.partition("#")[0].strip() for line in (ik.__doc__ or "").splitlines() if line.startswith("    ")]
    names: dict[str, Any] = {}
    for source in (line for line in lines if line and not line.startswith("ik.train")):
        for absent, instead in ABSENT.items():
            source = source.replace(absent, instead)
        exec(source, names)
    assert (place / "out" / "report" / "report.html").is_file()


def test_the_examples_of_train_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of their own: one after the other, and no variable of ranks is left behind."""
    sources = "\n".join(source_of(example) for example in examples("train"))
    script = f"""
import os, torch
torch.set_num_threads(1)
import instructkit as ik
{sources}
report = ik.Report("runs/short")
print("said", len(report.scores), report.folder / "model", {RANK_VARIABLES!r} & set(os.environ))
try:
    ik.train("easy_vqa", max_step=3)
except ik.UserError as error:
    print("said", error)
"""
    (place / "script.py").write_text(f"import os\nos.chdir({str(place)!r})\n{script}")
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    said = place / "said"
    (process,) = forks.start(place / "script.py", [], said, [{**os.environ, **forks.QUIET}])
    process.join()
    assert process.exitcode == 0, said.read_text()[-3000:]
    first, second = (line for line in said.read_text().splitlines() if line.startswith("said "))
    assert first == "said 1 runs/short/model set()"
    assert "max_step" in second
    assert "did you mean max_steps" in second
    assert (place / "runs" / "short" / "model" / "config.json").is_file()
    assert (place / "runs" / "tiny" / "model").is_dir()


def test_importing_is_light() -> None:
    script = "import instructkit as ik, sys; ik.sources; print(*sys.modules)"
    bare = "import instructkit, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "msgspec", "typer", "yaml", "datasets", "torch"}.isdisjoint(loaded)
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers", "datasets"}.isdisjoint(loaded)


def test_sources_are_a_module_and_a_function() -> None:
    from instructkit import sources

    assert ik.sources is sources
    assert list(ik.sources()) == sources.names()
    assert ik.sources()["vqav2"] is sources.source("vqav2")
    assert ik.sources()["vqav2"].published == 443_757
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ik.nothing


def test_a_dataset_is_a_sequence(place: Path) -> None:
    data = ik.Dataset(place / "data" / "vqav2" / "train")
    assert len(data) == len(list(data)) == data.manifest.examples
    assert isinstance(data[0], ik.Example)
    assert [each.id for each in data[:2]] == [data[0].id, data[1].id]
    prompts = list(data.render(seed=0))
    assert [prompt.example for prompt in prompts] == [each.id for each in data]
    assert prompts == list(data.render(seed=0)) != list(data.render(seed=1))
    rows = data.to_hf()
    assert rows["question"] == [each.question for each in data]
    assert rows[0]["images"] == [str(data.media_path(path)) for path in data[0].images]
    assert all(Path(path).is_file() for paths in rows["images"] for path in paths)
    with pytest.raises(ik.UserError, match=r"several splits; name one: .*vqav2/train"):
        ik.Dataset(place / "data" / "vqav2")
    with pytest.raises(ik.UserError, match="convert a dataset into it first"):
        ik.Dataset(place / "nothing")


def test_evaluate_gives_what_the_command_gives(place: Path, world: World) -> None:
    """A model in memory and one by its name: the same scores, answers and report."""
    expected = world.evaluate("vqav2,okvqa", place / "command", limit=3)
    said: list[str] = []
    model = ik.load_model(world.model(), device="cpu")
    found = ik.evaluate(model, ["vqav2", "okvqa"], data=world.data, limit=3, say=said.append)
    assert found.scores == {result.benchmark: result.value for result in expected.results}
    assert found.found.model == expected.model
    answers = "evaluation/okvqa/responses.jsonl"
    assert (found.folder / answers).read_bytes() == (place / "command" / answers).read_bytes()
    with pytest.raises(ik.UserError, match="name a folder"):
        found.report()
    report = found.report("out")
    assert report.scores == found.scores
    assert report.html.is_file()
    assert found.report("out").scores == found.scores  # twice is no mistake
    assert read_evaluation(Path("out")).settings.output == "out"
    other = ik.evaluate(model, "vqav2", data=world.data, limit=2, say=said.append)
    with pytest.raises(ik.UserError, match="out: holds another evaluation"):
        other.report("out")
    assert any("vqa_accuracy" in line for line in said)
    assert "VQAv2: vqa_accuracy" in repr(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ik.convert("vqav3", raw="releases/vqav2"), "did you mean vqav2"),
        (lambda: ik.convert("vqav2"), "name the folder of its release: raw="),
        (lambda: ik.convert("vqav2", raw="nowhere"), "nowhere"),
        (lambda: ik.load_model("nowhere"), "nowhere"),
        (lambda: ik.evaluate("runs/finetune/model", "vqav3"), "did you mean vqav2"),
        (lambda: ik.evaluate("runs/finetune/model", "vqav2", data="nowhere"), "no such folder"),
        (lambda: ik.evaluate(ik.Model(*parts()), "vqav2"), "the model has no name"),
        (lambda: ik.train("easy_vqq"), "did you mean easy_vqa"),
        (lambda: ik.train("easy_vqa", max_steps=0), "max_steps"),
        (lambda: ik.train("easy_vqa", max_steps=object()), "a object is no value"),
        (lambda: ik.Report("nowhere"), "no report here"),
        (
            lambda: ik.evaluate("runs/finetune/model", "vqav2", limit=2).report("x").answers("gqa"),
            "has answers to vqav2",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(place: Path, call: Any, message: str) -> None:
    with pytest.raises(ik.UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def parts() -> Any:
    from tests.tiny import tiny_model

    return tiny_model()


def test_a_conversion_warns_about_what_it_found(place: Path) -> None:
    shutil.rmtree(place / "data")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = ik.convert("vqav2", raw=place / "releases" / "vqav2", out=place / "data")
    assert made.converted
    assert sorted(str(each.message) for each in told) == sorted(f"{made.folder}: {line}" for line in made.warnings)
    assert not ik.convert("vqav2", raw="releases/vqav2", out="data").converted
    annotations = next((place / "releases" / "vqav2").rglob("*annotations*.json"))
    content = json.loads(annotations.read_text())
    for each in content["annotations"]:
        each["answers"] = []
    annotations.write_text(json.dumps(content))
    with pytest.raises(ik.UserError, match="do not fit, see"):
        ik.convert("vqav2", raw="releases/vqav2", out="data")


def test_settings_are_words_that_mean_the_same() -> None:
    import yaml

    for value in (20, 1e-5, True, None, "runs/x", "true", [0.9, 0.99], {"okvqa": 2}):
        key, _, text = word("key", value).partition("=")
        assert key == "key"
        assert yaml.safe_load(text) == value or float(yaml.safe_load(text)) == value
    assert word("output", Path("runs/x")) == 'output="runs/x"'


def test_the_launchers_options_pass_through(place: Path) -> None:
    command = launch_command(["easy_vqa", "--num_accelerators", "2", "max_steps=3", "--no_ssh", "model.name=nano"])
    assert command[:6] == [sys.executable, "-m", "instructkit.runs.launch", "--num_accelerators", "2", "--no_ssh"]
    assert Path(command[6]) == ROOT / "recipes" / "instruct.py"
    assert command[7:] == ["--config", "recipes/configs/easy_vqa.yaml", "max_steps=3", "model.name=nano"]
    for words, message in (
        ([], "the config comes first"),
        (["--num_accelerators", "2"], "the config comes first"),
        (["max_steps=3"], "the config comes first"),
        (["easy_vqq"], "did you mean easy_vqa"),
        (["easy_vqa", "max_step=3"], "did you mean max_steps"),
    ):
        with pytest.raises(ik.UserError, match=message):
            launch_command(words)


@pytest.mark.full
def test_the_command_starts_the_launcher(place: Path) -> None:
    """`instructkit train` to its end: one rank under DeepSpeed's launcher, its exit code handed on."""
    words = [sys.executable, "-m", "instructkit.cli", "train", "easy_vqa", "max_steps=1", "--num_accelerators", "1"]
    environment = {**os.environ, "MASTER_PORT": "0"}
    done = subprocess.run([*words, "--master_port", str(free_port())], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path("runs/tiny/report/report.html").is_file()
