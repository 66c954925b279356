"""Question generation from OKVQA: its converted training questions turned round, from answer to question."""

from __future__ import annotations

from dataclasses import replace

from instructkit.sources.okvqa import SOURCE as OKVQA

SOURCE = replace(
    OKVQA,
    name="vqg_okvqa",
    title="VQG from OKVQA",
    task="question_generation",
    splits={"train": OKVQA.splits["train"]},
    examples_of="okvqa",
)
