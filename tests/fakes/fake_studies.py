"""A study folder with invented numbers, for the page alone; none of them was ever measured."""

import dataclasses
import random
from pathlib import Path

from tests.fakes.fake_runs import FIVE, evaluation, png, result

from cleft.results import (
    Calibration,
    ContextVector,
    EmbeddingMap,
    NegationTest,
    PromptSensitivity,
    PromptTemplate,
    ReliabilityBin,
    Retrieval,
    RetrievalExample,
    RetrievalItem,
    Study,
    StudyCell,
    StudyLine,
    Subgroup,
    Subgroups,
    TemplateSpread,
    to_json,
)

TWO = ("No Pneumonia", "Pneumonia")
ROWS = (
    ("random-vit", "Random-ViT"),
    ("imagenet-vit", "ImageNet-ViT"),
    ("clip-vit", "CLIP-ViT"),
    ("convirt-r50", "ConVIRT-R50"),
    ("gloria-r50", "GLoRIA-R50"),
    ("mgca-vit", "MGCA-ViT"),
    ("mrm-vit", "MRM-ViT"),
    ("medclip-swin", "MedCLIP-Swin"),
    ("cleft-prefix", "CLEFT-Prefix"),
    ("cleft-ia3", "CLEFT-IA3"),
    ("cleft-lora", "CLEFT-LoRA"),
)
TASKS = {"zero-shot": ("accuracy",), "linear-probe": ("accuracy", "auc"), "fine-tune": ("accuracy", "auc")}
TRAINABLE = {"cleft-prefix": 1.21e6, "cleft-ia3": 1.16e6, "cleft-lora": 1.34e6, "random-vit": 1.1e6}


def calibration(quality=0.6) -> Calibration:
    """Return a calibration that is over-confident before temperature scaling."""
    points = [0.2 + 0.08 * place for place in range(10)]
    return Calibration(
        bins=tuple(
            ReliabilityBin(predicted=p, observed=max(0.0, p - 0.15 + 0.1 * quality), images=100, patients=90)
            for p in points
        ),
        ece=result("ece", 0.094, width=0.02),
        temperature=1.83,
        validation_images=400,
        bins_after=tuple(
            ReliabilityBin(predicted=p * 0.85, observed=p * 0.84, images=100, patients=90) for p in points
        ),
        ece_after=result("ece-after-temperature", 0.021, width=0.01),
    )


def subgroups(quality=0.6) -> tuple[Subgroups, ...]:
    """Return subgroups by sex and age, one of them small."""

    def group(name, images, shift, width):
        numbers = (result("accuracy", quality + shift, width=width), result("auc", quality + 0.2 + shift, width=width))
        return Subgroup(name=name, images=images, patients=images - 20, results=numbers)

    gaps = (result("accuracy", 0.04, reason="best M, worst F"), result("auc", 0.03, reason="best M, worst F"))
    ages = ("under 40", "40-60", "60-80", "80 and over")
    return (
        Subgroups(by="sex", groups=(group("M", 580, 0.02, 0.04), group("F", 420, -0.02, 0.05)), gaps=gaps),
        Subgroups(
            by="age",
            groups=tuple(
                group(name, size, shift, 1 / size**0.5)
                for name, size, shift in zip(ages, (120, 310, 420, 130), (0.06, 0.01, -0.01, -0.05), strict=True)
            ),
            gaps=tuple(dataclasses.replace(gap, reason="best under 40, worst 80 and over") for gap in gaps),
            left_out=3,
            unknown=17,
        ),
    )


def space(classes=FIVE, images=200) -> EmbeddingMap:
    """Return clusters of images around the prompt of their class."""
    draw = random.Random(0)
    prompts = [(0.5 * (index % 3) - 0.5, 0.45 * (index // 3) - 0.2) for index in range(len(classes))]
    return EmbeddingMap(
        images=tuple(
            (place % len(classes), draw.gauss(x * 0.6, 0.22), draw.gauss(y * 0.6, 0.18))
            for place in range(images)
            for x, y in [prompts[place % len(classes)]]
        ),
        prompts=tuple(prompts),
        explained_variance=(0.31, 0.12),
        modality_gap=0.84,
        omitted=800,
    )


def retrieval(quality=0.3, **changes):
    """Return retrieval results in each direction."""
    directions = ("image-to-text", "text-to-image", "image-to-image")
    numbers = []
    for direction in directions:
        numbers += [result(f"{direction}/recall@{k}", min(1.0, quality + k / 20)) for k in (1, 5, 10)]
        numbers += [result(f"{direction}/precision@{k}", quality * 0.8) for k in (1, 5, 10)]
        numbers += [result(f"{direction}/mean-rank", 14.25, width=1.0), result(f"{direction}/median-rank", 8, width=1)]
    baselines = tuple(result(f"chance/{each.metric}", 60.0 if "rank" in each.metric else 0.08) for each in numbers)
    image, words = (
        RetrievalItem(image=png(3), text="Edema"),
        RetrievalItem(text="a chest x ray of a patient with edema"),
    )
    wrong = dataclasses.replace(words, text="a chest x ray of a patient with fracture", relevant=False)
    return evaluation(
        quality,
        task="retrieval",
        scoring="nearest",
        prompts="captions",
        results=tuple(numbers),
        baselines=baselines,
        confusion=None,
        roc={},
        examples=(),
        retrieval=tuple(
            Retrieval(
                direction=direction,
                queries=940,
                without_match=60,
                candidates=312,
                relevant_per_query=4.2,
                examples=(
                    RetrievalExample(query=image, retrieved=(wrong, words, words, wrong, words), rank=2),
                    RetrievalExample(query=image, retrieved=(words, words, wrong, words, wrong), rank=1),
                )
                if direction == "image-to-text"
                else (
                    RetrievalExample(
                        query=words if direction == "text-to-image" else image,
                        retrieved=tuple(
                            RetrievalItem(image=png(i), text="Edema", relevant=i % 2 == 0) for i in range(5)
                        ),
                        rank=1,
                    ),
                ),
            )
            for direction in directions
        ),
        **changes,
    )


def audit(quality=0.6, **changes):
    """Return results of five prompt templates, two negations and thirty context vectors."""
    openings = ("this is a chest x ray of a patient with", "a radiograph showing", "findings:", "there is", "image of")
    return evaluation(
        quality,
        task="prompts",
        confusion=None,
        roc={},
        examples=(),
        prompt_sensitivity=PromptSensitivity(
            templates=tuple(
                PromptTemplate(
                    template=opening,
                    default=place == 0,
                    results=(result("accuracy", quality - 0.03 * place), result("auc", quality + 0.2 - 0.02 * place)),
                )
                for place, opening in enumerate(openings)
            ),
            spread=(
                TemplateSpread(
                    metric="accuracy", lowest=quality - 0.12, highest=quality, mean=quality - 0.06, std=0.047
                ),
                TemplateSpread(metric="auc", lowest=0.72, highest=0.8, mean=0.76, std=0.031),
            ),
            negation=tuple(
                NegationTest(
                    finding=name,
                    present_prompt=f"a chest x ray with {name.lower()}",
                    absent_prompt=f"a chest x ray without {name.lower()}",
                    cosine=0.94,
                    predicted_present=0.82,
                    prevalence=0.2,
                    results=(result("auc/present", 0.8), result("auc/absent", 0.31), result("auc/pair", 0.66)),
                )
                for name in FIVE[:2]
            ),
            context=tuple(
                ContextVector(
                    position=place,
                    norm=1.1 + 0.2 * (place % 5),
                    displacement=0.3 + 0.05 * (place % 7),
                    nearest_tokens=(("patient", 0.41), ("with", 0.33), ("x", 0.2)),
                )
                for place in range(1, 31)
            ),
            token_norm=1.62,
        ),
        **changes,
    )


def write_study(
    folder: Path, *, name="table1", scale="tiny", rows=ROWS, seeds=3, done=("random-vit", "cleft-"), **changes
) -> Path:
    """Write Table 1 at the tiny scale, with results of CLEFT's rows and of the first baseline only."""
    columns = tuple(
        StudyLine(key=f"{key}/{task}", label=f"{label}, {task.replace('-', ' ')}", metrics=metrics)
        for key, label in (("chexpert", "CheXpert-5×200"), ("rsna", "RSNA"))
        for task, metrics in TASKS.items()
    )
    cells = []
    for index, (row, _) in enumerate(rows):
        for column in columns:
            state, files, reason = "missing", (), "the weights of this method are not part of cleft"
            if row.startswith(done):
                state, files, reason = "done", write_cell(folder, row, column, index, seeds=seeds), None
            if row == "random-vit" and column.key.endswith("zero-shot"):
                state, files, reason = "impossible", (), "it has no text tower"
            if (row, column.key) == ("cleft-ia3", "rsna/fine-tune"):
                state, files, reason = "failed", (), "the loss is not finite in step 12"
            cells.append(StudyCell(row=row, column=column.key, state=state, results=files, reason=reason))
    study = Study(
        name=name,
        title="Table 1: chest radiographs",
        scale=scale,
        command=f"cleft reproduce {name} --scale {scale} --data chexpert=/home/somebody/secret",
        rows=tuple(
            StudyLine(
                key=key, label=label, facts={"trainable": TRAINABLE[key], "frozen": 2.4e6} if key in TRAINABLE else {}
            )
            for key, label in rows
        ),
        columns=columns,
        cells=tuple(cells),
        notes=("Invented numbers.",),
    )
    (folder / "study.json").write_text(to_json(dataclasses.replace(study, **changes)))
    return folder


def write_cell(folder: Path, row: str, column: StudyLine, index: int, *, seeds=3, **changes) -> tuple[str, ...]:
    """Write one result file per seed, with everything a page can show."""
    dataset, task, *share = column.key.split("/")
    files = []
    for seed in range(seeds):
        classes = FIVE if dataset == "chexpert" else TWO
        level = 0.3 + 0.02 * index + 0.012 * seed + (0.08 if task != "zero-shot" else 0) + 0.25 * (dataset == "rsna")
        learned = {"training_fraction": float(share[0])} if share else {}
        head = {"protocol": "standard", "training_seed": seed, "prompts": "", **learned} if task != "zero-shot" else {}
        made = evaluation(
            level,
            classes=classes,
            dataset=dataset,
            task=task,
            split_digest="7ad98f6f27bf6200" if dataset == "chexpert" else "00aa98f6f27bf620",
            calibration=calibration(level),
            subgroups=subgroups(level),
            embedding_map=space(classes) if task == "zero-shot" else None,
            **{**head, **changes},
        )
        made = dataclasses.replace(made, examples=made.examples[:6])
        path = folder / "runs" / f"{row}-{seed}" / "results" / f"{column.key.replace('/', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(made))
        files.append(path.relative_to(folder).as_posix())
    return tuple(files)


def small_study(folder: Path, results, *, state="done", reason=None, cells=None, **changes) -> Path:
    """Write a study of two rows and two columns with the given evaluations: one file per seed."""
    made = []
    for (row, column), evaluations in results.items():
        files = []
        for seed, each in enumerate(evaluations):
            path = folder / "runs" / row / column.replace("/", "-") / f"seed-{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_json(each))
            files.append(path.relative_to(folder).as_posix())
        made.append(StudyCell(row=row, column=column, state=state, results=tuple(files), reason=reason))
    study = Study(
        name="table1",
        title="Two rows",
        scale="tiny",
        command="cleft reproduce table1 --scale tiny",
        rows=(StudyLine(key="clip-vit", label="CLIP-ViT"), StudyLine(key="cleft-lora", label="CLEFT-LoRA")),
        columns=(
            StudyLine(key="chexpert/zero-shot", label="CheXpert-5×200, zero-shot", metrics=("accuracy",)),
            StudyLine(key="rsna/zero-shot", label="RSNA, zero-shot", metrics=("accuracy",)),
        ),
        cells=tuple(made) if cells is None else cells,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(to_json(dataclasses.replace(study, **changes)))
    return folder
