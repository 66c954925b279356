"""How much a score depends on the wording: training wordings instead of a protocol's prompt.

On Flickr30K one phrase at the end of the prompt moves CIDEr by 22 points (salesforce/LAVIS#719).
"""

from __future__ import annotations

from itertools import islice

from instructkit.data.dataset import Examples
from instructkit.evaluation.questions import Wording, for_wordings
from instructkit.files import read_yaml
from instructkit.prompts.protocols import Protocol
from instructkit.prompts.templates import TemplateFile, train_templates


def wordings(protocol: Protocol, examples: Examples, limit: int | None, count: int) -> list[Wording]:
    """The first `count` wordings of the protocol's task that suit every example of the benchmark.

    A wording suits a benchmark that shows its options only if it shows them too; for the others the examples are put
    into words without their options, as the protocol does.

    Args:
        protocol: the benchmark.
        examples: its split.
        limit: number of examples that count, as in the benchmark itself.
        count: how many wordings; there may be fewer that suit.
    """
    templates = train_templates(protocol.task)
    before = read_yaml(templates.path, TemplateFile).before
    options = "choices" in protocol.compiled.fields
    fitting = {
        index for index, each in enumerate(templates.wordings) if not options or "choices" in each.instruction.fields
    }
    for example in islice(filter(protocol.keeps, examples), limit):
        if not fitting:
            break
        fitting &= set(templates.fitting(for_wordings(protocol, example)))
    chosen = sorted(fitting)[:count]
    return [
        Wording(
            templates.templates[index].name,
            before + templates.templates[index].instruction,
            templates.wordings[index].instruction,
        )
        for index in chosen
    ]
