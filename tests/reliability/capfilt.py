"""CapFilt on many drawn pictures: its speed on one and two ranks, its memory, and kills at random moments.

    python -m tests.reliability.capfilt [--pictures 100000] [--kills 10]

Pictures of the mini-world get captions and scores from a small BLIP with random weights; a hundredth of the pictures is
torn, some are listed twice. The run is done on one rank and on two, one thread each. A third run on two ranks is killed
so many times, at moments drawn from the seed, the last fifth of them while the pairs are written, and started again
each time. All files of the three runs, the report aside, must be the same bytes. The last line is JSON. Speeds say
nothing on a machine whose two cores are not free: the load is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from instructkit.conversion.convert import convert
from instructkit.models.load.blip import join_blip
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.save import save_blip
from instructkit.world.captions import ROTATE, caption
from instructkit.world.draw import draw_picture
from instructkit.world.scene import draw_scene
from tests import forks
from tests.training.mini import ranks_of

PER_FOLDER = 10_000
TORN, TWICE = 100, 50
"""Every so manieth picture is torn, or listed a second time."""


_POLL = 1.0
"""Seconds between two looks at a run: each takes time of a core from its ranks."""


class Watched(NamedTuple):
    """What was seen of a run.

    Attributes:
        codes: exit codes of its ranks.
        seconds: from the first block's begin to the last block's end.
        early: most memory of a rank while the first fifth of the blocks was made, in bytes.
        late: likewise while the others were made.
        most: likewise over the whole run, in which the first rank then writes the pairs.
    """

    codes: list[int | None]
    seconds: float
    early: int
    late: int
    most: int


class Trial:
    """Runs over the same pictures and model in one folder.

    Args:
        folder: of all.
        pictures: how many there are.
        block: pictures of a block.
    """

    def __init__(self, folder: Path, pictures: int, block: int) -> None:
        self.folder, self.pictures, self.block = folder, pictures, block
        self.blocks = -(-pictures // block)

    def write(self, seed: int = 0) -> None:
        """Draw the pictures, list and convert them, and save the model."""
        rng, pairs, texts = random.Random(seed), [], []
        raw = self.folder / "raw"
        for number in range(self.pictures):
            scene = draw_scene(rng)
            name = f"{number // PER_FOLDER:05}/{number:09}.jpg"
            path = raw / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(scene).save(path, quality=90)
            if number % TORN == TORN - 1:
                path.write_bytes(path.read_bytes()[:200])
            pairs += [(name, caption(scene, wording)) for wording in (number % ROTATE, 0)[: 1 + (number % TWICE == 7)]]
            texts += [pairs[-1][1]] if number < 2000 else []
        (raw / "cc3m.json").write_text(json.dumps([{"image": image, "caption": text} for image, text in pairs]))
        convert("cc3m", raw, self.folder / "data")
        model, captions = join_blip(
            None, None, "all_but_self_attention", lambda: train_qformer_tokenizer([*texts, "a picture of"], 300)
        )
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=noise)
        save_blip(model, captions, self.folder / "model")

    def words(self, output: str) -> list[str]:
        """The command line of a run."""
        model = self.folder / "model"
        return [
            str(self.block),
            f"data.root={self.folder / 'data'}",
            "data.web=[cc3m]",
            "data.human=[]",
            f"captioner.model={model}",
            f"filter.model={model}",
            "batch_size=64",
            f"output={self.folder / output}",
        ]

    def made(self, output: str) -> list[Path]:
        """The blocks that a run has made."""
        return list((self.folder / output / "blocks").glob("*.safetensors"))

    def run(self, output: str, ranks: int, kill_at: int | None = None, delay: float = 0.0) -> Watched:
        """Start a run and wait for its end, or kill all ranks a moment after so many blocks are there."""
        script = Path(__file__).with_name("capfilt_rank.py")
        processes = forks.start(script, self.words(output), self.folder / f"{output}.said", ranks_of(ranks))
        early = late = most = 0
        try:
            while any(process.exitcode is None for process in processes):
                blocks = len(self.made(output))
                now = max(memory_of(process.pid) for process in processes)
                most = max(most, now)
                if blocks <= self.blocks / 5:
                    early = most
                elif blocks < self.blocks:
                    late = max(late, now)
                if kill_at is not None and blocks >= kill_at:
                    time.sleep(delay)
                    break
                time.sleep(_POLL if kill_at is None else _POLL / 10)
        finally:
            forks.end(processes)
        made = [path.stat().st_mtime for path in self.made(output)]
        begin = self.folder / output / "blocks" / "identity.json"
        seconds = max(made) - begin.stat().st_mtime if made else 0.0
        return Watched([process.exitcode for process in processes], seconds, early, late, most)

    def whole(self, output: str, ranks: int) -> Watched:
        """A run that nobody kills."""
        seen = self.run(output, ranks)
        if any(seen.codes):
            raise SystemExit((self.folder / f"{output}.said").read_text()[-4000:])
        return seen

    def files(self, output: str) -> dict[str, bytes]:
        """All that a run left, without its log and the report, which say how it was called."""
        root = self.folder / output
        found = [root / "capfilt.json", root / "dropped.jsonl", *(root / "blocks").iterdir()]
        found += [path for path in (root / "data").rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}

    def killed(self, output: str, ranks: int, kills: int, writing: float, seed: int = 0) -> int:
        """A run that is killed so often and started again each time.

        Args:
            output: its folder.
            ranks: how many are started.
            kills: how often it is killed.
            writing: seconds that writing the pairs takes.
            seed: of the moments.

        Returns:
            How often ranks were still at work when they were killed.
        """
        rng = random.Random(seed)
        late = max(1, kills // 5)
        moments = sorted(rng.randrange(self.blocks) for _ in range(kills - late)) + [self.blocks] * late
        struck = 0
        for moment in moments:
            seen = self.run(output, ranks, moment, rng.uniform(0, writing / 2 if moment == self.blocks else 0.5))
            struck += any(code != 0 for code in seen.codes)
            print(f"killed with {len(self.made(output)):,} of {self.blocks:,} blocks made", flush=True)
        self.whole(output, ranks)
        return struck


def memory_of(pid: int | None) -> int:
    """Memory of a process of its own, in bytes; 0 once it has ended."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--block", type=int, default=512, help="pictures of a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=1.7, help="least speed of two ranks, in that of one")
    parser.add_argument(
        "--growth", type=float, default=1.1, help="most memory of the later blocks, in that of the first fifth"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for some GB that are removed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="capfilt-", dir=options.folder))
    try:
        measure(Trial(scratch, options.pictures, options.block), options)
    finally:
        shutil.rmtree(scratch)


def measure(trial: Trial, options: argparse.Namespace) -> None:
    """Do all runs, print what was measured, and end with exit code 1 if something is not as it must be."""
    began = time.monotonic()
    trial.write(options.seed)
    print(f"{trial.pictures:,} pictures drawn in {time.monotonic() - began:.0f} s", flush=True)
    one, two = (trial.whole(name, ranks) for name, ranks in (("one", 1), ("two", 2)))
    for ranks, seen in ((1, one), (2, two)):
        print(f"{ranks} rank(s): {trial.pictures / seen.seconds:.1f} pictures/s, {seen.most / 1e6:.0f} MB a rank")
    struck = trial.killed("killed", 2, options.kills, writing_seconds(trial), options.seed)
    files = [trial.files(name) for name in ("one", "two", "killed")]
    found = {
        "pictures": trial.pictures,
        "pictures_per_second": [round(trial.pictures / each.seconds, 1) for each in (one, two)],
        "ratio": round(one.seconds / two.seconds, 3),
        "memory_mb": [round(each.most / 1e6) for each in (one, two)],
        "growth": round(max(each.late / each.early for each in (one, two)), 3),
        "kills": options.kills,
        "struck": struck,
        "same_bytes": files[0] == files[1] == files[2],
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(found))
    if not found["same_bytes"] or one.seconds / two.seconds < options.ratio or found["growth"] > options.growth:
        raise SystemExit(1)


def writing_seconds(trial: Trial) -> float:
    """How long the run on one rank went on behind its last block."""
    last = max(path.stat().st_mtime for path in trial.made("one"))
    return (trial.folder / "one" / "report" / "report.json").stat().st_mtime - last


if __name__ == "__main__":
    main()
