"""The CLAIM checklist, filled as far as a run can tell: the rest is the authors'.

Checklist for Artificial Intelligence in Medical Imaging, 2024 update: Tejani et al., Radiology:
Artificial Intelligence 2024, doi 10.1148/ryai.240300. Numbers and sections are those of its items;
the words are ours.
"""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pp_jax.evaluate.files import put_text
from pp_jax.evaluate.sections import Column, Table
from pp_jax.evaluate.tables import to_markdown

_COLUMNS = (Column(""), Column("no."), Column("asks for"), Column("answer"))


class Item(NamedTuple):
    """A row of `CLAIM`."""

    number: int
    section: str
    asks: str
    write: str  # What the authors must do where the run knows no answer.


def write_claim(path: Path, facts: Mapping[str, str]) -> None:
    """Write the checklist as Markdown: filled from the facts, or open with what is to be written.

    Args:
      path: The file, in a folder that exists.
      facts: Answers by the key of their item in `CLAIM`; one that is empty leaves its item open.

    Raises:
      ValueError: A key that no item has.
    """
    for key in facts:
        if key not in CLAIM:
            raise ValueError(f"{key!r} is no item of CLAIM; its keys are {', '.join(CLAIM)}")
    filled = sum(bool(text.strip()) for text in facts.values())
    parts = [
        "# CLAIM checklist",
        "Checklist for Artificial Intelligence in Medical Imaging, 2024 update (Tejani et al., "
        "Radiology: Artificial Intelligence 2024, doi 10.1148/ryai.240300); its numbers and "
        "sections, in other words. It asks authors to say for each item on which page it stands.",
        f"☑ {filled} of {len(CLAIM)} filled from the run, to be checked; "
        f"☐ {len(CLAIM) - filled} open, with what the authors must write.",
    ]
    for section, group in groupby(CLAIM.items(), key=lambda pair: pair[1].section):
        rows = [_row(item, facts.get(key, "").strip()) for key, item in group]
        parts += [f"## {section}", to_markdown(Table(section, _COLUMNS, rows)).rstrip("\n")]
    put_text(path, "\n\n".join(parts) + "\n")


def _row(item: Item, answer: str) -> tuple[str, str, str, str]:
    return ("☑" if answer else "☐", str(item.number), item.asks, answer or f"Open: {item.write}")


CLAIM: Mapping[str, Item] = MappingProxyType(
    {
        "title": Item(
            1,
            "Title and abstract",
            "names the study as one of AI and the kind of technique",
            "Name the technique, such as a fine-tuned Segment Anything Model, in the title.",
        ),
        "abstract": Item(
            2,
            "Title and abstract",
            "sums up design, methods, results and conclusions",
            "Write it last, with the primary figure, its interval and its n.",
        ),
        "background": Item(
            3,
            "Introduction",
            "scientific and clinical background; intended use of the method",
            "Say which reader the mask is for, and at which point of the work.",
        ),
        "aims": Item(
            4,
            "Introduction",
            "aims and hypotheses",
            "State the hypothesis that the primary endpoint tests, and when it was fixed.",
        ),
        "timing": Item(
            5,
            "Methods: study design",
            "prospective or retrospective",
            "Say which; public data sets are retrospective.",
        ),
        "goal": Item(
            6,
            "Methods: study design",
            "goal of the study",
            "Feasibility, comparison, non-inferiority or something else.",
        ),
        "sources": Item(
            7,
            "Methods: data",
            "where the data come from",
            "Name institutions, dates and licences of each data set.",
        ),
        "eligibility": Item(
            8,
            "Methods: data",
            "criteria of inclusion and exclusion",
            "Give the criteria of each data set and what was left out besides.",
        ),
        "preprocessing": Item(
            9,
            "Methods: data",
            "preparation of the images",
            "Name every step from the file to the network's input.",
        ),
        "subsets": Item(
            10,
            "Methods: data",
            "selection of parts of the data",
            "Say whether slices, views or regions were chosen, and how.",
        ),
        "deidentification": Item(
            11,
            "Methods: data",
            "removal of identities",
            "Say how it was done, by whom, and whether it was checked.",
        ),
        "missing": Item(
            12,
            "Methods: data",
            "treatment of missing data",
            "Say what was done with unread images and unknown facts.",
        ),
        "acquisition": Item(
            13,
            "Methods: data",
            "protocol of image acquisition",
            "Give devices, views, positions and matrix sizes.",
        ),
        "reference_method": Item(
            14,
            "Methods: reference standard",
            "how the reference was obtained",
            "Say whether it is an outline, a rectangle, a report or a machine's answer.",
        ),
        "reference_reason": Item(
            15,
            "Methods: reference standard",
            "why this reference was chosen",
            "Give the reason, and its known errors.",
        ),
        "annotators": Item(
            16,
            "Methods: reference standard",
            "who annotated",
            "Give number, training and experience of the readers, and what they were told.",
        ),
        "test_annotation": Item(
            17,
            "Methods: reference standard",
            "annotation of the test set",
            "Say how it differs from that of the training set.",
        ),
        "variability": Item(
            18,
            "Methods: reference standard",
            "agreement within and between readers",
            "Give the agreement of readers: no model can be judged more finely.",
        ),
        "assignment": Item(
            19,
            "Methods: data partitions",
            "how cases were assigned to partitions",
            "Give shares, seed and strata.",
        ),
        "disjoint": Item(
            20,
            "Methods: data partitions",
            "level at which partitions are disjoint",
            "Say that no patient is in two parts, and how patients were told apart.",
        ),
        "sample_size": Item(
            21,
            "Methods: testing data",
            "intended sample size",
            "Give the size, its reason, and the smallest difference it can detect.",
        ),
        "model": Item(
            22,
            "Methods: model",
            "detailed description of the model",
            "Give architecture, input, output and number of parameters.",
        ),
        "software": Item(
            23, "Methods: model", "software with versions", "Name libraries, versions and devices."
        ),
        "initialisation": Item(
            24,
            "Methods: model",
            "starting values of the parameters",
            "Say which weights were loaded, and what was random.",
        ),
        "training": Item(
            25,
            "Methods: training",
            "the training in detail",
            "Give augmentation, loss, optimiser, schedule, steps and batch.",
        ),
        "selection": Item(
            26,
            "Methods: training",
            "how the final model was chosen",
            "Name the measure and the part of the data that it was chosen on.",
        ),
        "ensembling": Item(
            27, "Methods: training", "ensembles", "Describe them, or say that there are none."
        ),
        "metrics": Item(
            28,
            "Methods: evaluation",
            "measures of performance",
            "Define each, with units and what an empty mask scores.",
        ),
        "statistics": Item(
            29,
            "Methods: evaluation",
            "tests and measures of uncertainty",
            "Name intervals, tests, the family that was corrected for, and margins.",
        ),
        "robustness": Item(
            30,
            "Methods: evaluation",
            "robustness and sensitivity",
            "Vary prompts, filters, seeds or devices, and say how far results move.",
        ),
        "explanation": Item(
            31,
            "Methods: evaluation",
            "explanation and interpretation",
            "Say whether the image was used at all, and what the answer depends on.",
        ),
        "internal": Item(
            32,
            "Methods: evaluation",
            "evaluation on internal data",
            "Describe the test part, and how often it was read.",
        ),
        "external": Item(
            33,
            "Methods: evaluation",
            "testing on external data",
            "Test on a set from elsewhere, or name its absence as a limit.",
        ),
        "registration": Item(
            34,
            "Methods: evaluation",
            "registration of a clinical trial",
            "Give the number, or say that this is no trial.",
        ),
        "flow": Item(
            35,
            "Results: data",
            "patients and images included and excluded",
            "Give the counts at each step, best as a diagram.",
        ),
        "characteristics": Item(
            36,
            "Results: data",
            "demographic and clinical facts per partition",
            "Give age, sex, view and class of each part.",
        ),
        "performance": Item(
            37,
            "Results: performance",
            "measures with their uncertainty",
            "Give the primary figure first, beside the controls.",
        ),
        "estimates": Item(
            38,
            "Results: performance",
            "estimates of diagnostic accuracy and their precision",
            "Give sensitivity and false positives per image, or say why there are none.",
        ),
        "failures": Item(
            39,
            "Results: performance",
            "analysis of failures",
            "Show the worst cases and what they share.",
        ),
        "limitations": Item(
            40,
            "Discussion",
            "limits of the study",
            "Name bias, size, reference standard and what was not tested.",
        ),
        "implications": Item(
            41,
            "Discussion",
            "meaning for practice",
            "Say what may be concluded for use, and what may not.",
        ),
        "protocol": Item(
            42,
            "Other information",
            "where the full protocol and details are",
            "Give a link to the protocol or the details.",
        ),
        "availability": Item(
            43,
            "Other information",
            "availability of software, model and data",
            "Give links, versions and licences.",
        ),
        "funding": Item(
            44,
            "Other information",
            "funding and the role of funders",
            "Name funders and their role, or say that there were none.",
        ),
    }
)
