"""Existing models as rows: imported checkpoints and runs, and invalid ones."""

import shutil

import pytest
from tests.fakes.models import edit_description
from tests.fakes.published import SIZE, mgca_state, mrm_state, write_lightning, write_tokenizer
from tests.studies.test_reproduce import QUICK, read
from tests.tools.tiny_runs import tiny_settings, write_drawings

from cleft.cli import main
from cleft.errors import CheckpointError
from cleft.evaluation.compare import compare_seeds
from cleft.evaluation.result_files import read_evaluation
from cleft.models.checkpoint import weights_digest
from cleft.models.importing.importing import import_checkpoint
from cleft.studies.grids import import_model, read_imported_model
from cleft.studies.plans import paper_plan
from cleft.studies.steps import StudyOptions, plan_steps, row_settings
from cleft.training.pretrain import pretrain

GRID = "columns: [manifest/zero-shot]\nmodels:\n  MGCA (published): {}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Synthetic images, imported models with and without text encoder, and a run."""
    home = tmp_path_factory.mktemp("home")
    tokenizer = write_tokenizer(home / "tokenizer")
    write_drawings(home / "data")
    for name, state in (("mgca", mgca_state()), ("mrm", mrm_state())):
        path = write_lightning(home / f"{name}.ckpt", state)
        import_checkpoint(path, home / "models" / name, size=SIZE, tokenizer=None if name == "mrm" else tokenizer)
    pretrain(tiny_settings(home / "data", "--optim.steps=4"), home / "run", progress=False)
    return home


@pytest.fixture
def words(home, tmp_path):
    """Options of `cleft reproduce`."""
    data = [f"--data=manifest={home / 'data'}", f"--data.cache={home / 'cache'}"]
    return [*data, *QUICK, f"--out={tmp_path / 'study'}", "--seeds=2"]


def write_grid(folder, text):
    (folder / "grid.yaml").write_text(text)
    return str(folder / "grid.yaml")


def test_imported_model_is_evaluated_once_for_all_seeds(home, words, tmp_path, capsys):
    line = ["reproduce", write_grid(tmp_path, GRID.format(home / "models/mgca")), *words, "--scale=tiny"]
    before = sorted((home / "models").rglob("*"))
    assert main([*line, "--plan"]) == 0
    assert "mgca-published manifest/zero-shot         0 of 1 done; 2 steps" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()
    assert main(line) == 0
    study = read(tmp_path / "study")
    [row], [cell] = study.rows, study.cells
    assert (row.label, row.heading) == ("MGCA (published)", "imported models")
    assert row.origin.startswith("mgca: imported from mgca.ckpt (SHA-256 ")
    assert row.origin.endswith(", a checkpoint of MGCA")
    assert (row.facts["trainable"], row.facts["seconds"]) == (0, 0)
    assert row.facts["frozen"] > 0
    [file] = cell.results
    evaluation = read_evaluation(tmp_path / "study" / file)
    assert evaluation.checkpoint == weights_digest(home / "models/mgca")
    assert "The run does not say which patients it was trained on; these may be among them." in evaluation.notes
    assert before == sorted((home / "models").rglob("*"))  # the folder it came from is only read
    capsys.readouterr()
    assert main(line) == 0
    assert "to do: nothing" in capsys.readouterr().out
    page = (tmp_path / "study/study.html").read_text()
    assert "imported from mgca.ckpt" in page
    assert "which patients it was trained on" in page
    (tmp_path / "study/study.html").unlink()
    assert main(["report", str(tmp_path / "study")]) == 0
    assert (tmp_path / "study/study.html").read_text() == page


def test_other_weights_have_their_own_runs(home, tmp_path):
    first = read_imported_model(home / "models/mgca")
    state = mgca_state()
    path = write_lightning(tmp_path / "vit_base.ckpt", {name: 2 * tensor for name, tensor in state.items()})
    import_checkpoint(path, tmp_path / "mgca", size=SIZE, tokenizer=home / "tokenizer")
    assert read_imported_model(tmp_path / "mgca").weights != first.weights
    names = [set(_steps(tmp_path, folder)) for folder in (home / "models/mgca", tmp_path / "mgca")]
    assert not names[0] & names[1]
    assert names[0] == set(_steps(tmp_path, home / "models/mgca"))


def _steps(tmp_path, folder):
    from cleft.studies.grids import read_grid

    grid = write_grid(tmp_path, GRID.format(folder))
    return (
        plan_steps([read_grid(tmp_path / "grid.yaml")], StudyOptions(data={"manifest": tmp_path})).steps if grid else {}
    )


def test_imported_model_uses_study_data_and_its_own_encoders(home):
    from cleft.studies.grids import add_models

    plan = add_models(paper_plan("table1", "tiny"), [("ours", home / "models/mgca")])
    ours, own = row_settings(plan.rows[-1], StudyOptions(data={})), read_imported_model(home / "models/mgca").settings
    lora = row_settings(next(row for row in plan.rows if row.key == "cleft-lora"), StudyOptions(data={}))
    assert (ours.data, ours.classes, ours.classify) == (lora.data, lora.classes, lora.classify)
    assert (ours.method, ours.images, ours.image, ours.text, ours.loss) == (
        own.method,
        own.images,
        own.image,
        own.text,
        own.loss,
    )


def test_model_that_changed_since_planning_is_refused(home, tmp_path):
    shutil.copytree(home / "models/mgca", tmp_path / "mgca")
    steps = _steps(tmp_path, tmp_path / "mgca")
    step = next(step for step in steps.values() if step.kind == "import")
    edit_description(tmp_path / "mgca", lambda tree: tree["settings"]["text"].update(max_tokens=7))
    with pytest.raises(CheckpointError, match="changed while they were read; run the same command again"):
        import_model(step)


@pytest.mark.parametrize(
    ("model", "code", "sentence"),
    [
        ("theirs={home}/nowhere", 4, "--model 'theirs': {home}/nowhere is not a model folder: it does not exist"),
        ("theirs={home}/data", 4, "--model 'theirs': {home}/data is not a model folder: it has no model.json"),
        ("theirs={home}/mgca.ckpt", 4, "it is a file; import the authors' checkpoints with `cleft import"),
        ("={home}/models/mgca", 2, "is not a label and a folder; write --model '<label>=<folder>'"),
        ("theirs=", 2, "--model 'theirs=' is not a label and a folder"),
        ("()={home}/models/mgca", 2, "--model '()' for {home}/models/mgca: the label needs a letter"),
        (
            "rank 4={home}/models/mgca",
            2,
            "--model 'rank 4': grid already has a row 'Rank 4' (lora); give {home}/models/mgca another",
        ),
        ("LoRA={home}/models/mgca", 2, "--model 'LoRA': grid already has a row 'Rank 4' (lora)"),
        ("theirs={home}/study", 2, "{home}/study is a study; give one of its models, such as"),
        ("theirs={home}/head", 2, "{home}/head is a classifier on the image encoder of another run; give that run"),
        ("theirs={home}/begun", 4, "{home}/begun: stage one is not finished; repeat the cleft pretrain command"),
    ],
)
def test_invalid_model_is_refused_before_anything_runs(home, words, tmp_path, capsys, model, code, sentence):
    (home / "study").mkdir(exist_ok=True)
    (home / "study/study.json").write_text("{}")
    for name, change in (("head", {"head": {"classes": ["Edema"], "scoring": "multi-class"}}), ("begun", {})):
        shutil.copytree(home / "models/mrm", home / name, dirs_exist_ok=True)
        edit_description(home / name, lambda tree, change=change: tree.update(change))
    (home / "begun/states").mkdir(exist_ok=True)
    grid = write_grid(tmp_path, "columns: [manifest/zero-shot]\nrows:\n  lora: {preset: tiny, label: Rank 4}\n")
    assert main(["reproduce", grid, *words, f"--model={model.format(home=home)}", "--plan"]) == code
    assert sentence.format(home=home) in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (["a={}/mgca", "a={}/mrm"], "--model 'a': it is also the label of"),
        (["My a={}/mgca", "my-a={}/mrm"], "--model 'my-a': it is the same as 'My a'"),
        (["{}/mgca", "mgca={}/mrm"], "--model 'mgca': it is also the label of"),
    ],
)
def test_duplicate_labels_are_refused(home, words, tmp_path, capsys, models, sentence):
    grid = write_grid(tmp_path, "columns: [manifest/zero-shot]\nrows:\n  lora: {preset: tiny}\n")
    given = [f"--model={model.format(home / 'models')}" for model in models]
    assert main(["reproduce", grid, *words, *given, "--plan"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("models:\n  theirs: nowhere\n", 4, "grid.yaml, line 3: models: 'theirs': nowhere is not a model"),
        (
            "models:\n  theirs: [a, b]\n",
            2,
            "line 3: models: 'theirs': give its folder, such as theirs: models/published",
        ),
        ("models: nowhere\n", 2, "a grid needs rows (a preset and settings each) or models"),
    ],
)
def test_invalid_models_of_a_grid_are_refused_with_their_line(words, tmp_path, capsys, text, code, sentence):
    grid = write_grid(tmp_path, f"columns: [manifest/zero-shot]\n{text}")
    assert main(["reproduce", grid, *words, "--plan"]) == code
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_imported_models_are_compared_with_every_seed(home, words, tmp_path):
    grid = write_grid(
        tmp_path,
        "columns: [manifest/zero-shot, manifest/linear-probe, manifest/fine-tune/0.5]\nreference: lora\n"
        f"rows:\n  lora: {{preset: tiny}}\nmodels:\n  MGCA (published): {home / 'models/mgca'}\n",
    )
    heads = ["--classify.protocol=standard", "--classify.steps=4", "--classify.val_every=2", "--scale=tiny"]
    given = [f"--model={home / 'models/mrm'}", f"--model=our run={home / 'run'}"]
    assert main(["reproduce", grid, *words, *heads, *given]) == 0
    study = read(tmp_path / "study")
    assert [row.key for row in study.rows] == ["lora", "mgca-published", "mrm", "our-run"]
    cells = {(cell.row, cell.column.partition("/")[2]): cell for cell in study.cells}
    assert cells["mrm", "zero-shot"].reason == "no text encoder"
    done = {key: len(cell.results) for key, cell in cells.items() if cell.state == "done"}
    assert len(done) == 11
    # Prompts and a solved probe of still features draw nothing; half of the patients and first weights are drawn.
    once = {key for key, count in done.items() if count == 1}
    assert once == {key for key in done if key[0] != "lora" and key[1] != "fine-tune/0.5"}
    files = [
        [tmp_path / "study" / file for file in cells[row, "zero-shot"].results] for row in ("mgca-published", "lora")
    ]
    assert cells["mgca-published", "zero-shot"].differences == compare_seeds(files[0] * 2, files[1])
    seen = read_evaluation(tmp_path / "study" / cells["our-run", "zero-shot"].results[0])
    assert not any("was trained on" in note for note in seen.notes)  # it says whom it knows: none of these
    assert study.rows[-1].origin == "run: a run of the method cleft, seed 0"
