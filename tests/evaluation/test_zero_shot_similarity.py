"""Word-level similarity of an untrained GLoRIA: equal to a plain loop, and named in the result."""

import shutil

import numpy as np
import pytest
import torch
from tests.fakes.chexpert import write_fake_chexpert
from tests.fakes.untrained import CLASSES, untrained_rows, write_untrained_run, write_untrained_runs
from tests.tools.tiny_methods import method_settings

from cleft.cli import main
from cleft.config import load_settings
from cleft.data.batches import eval_loader
from cleft.data.text.prompts import class_prompt, draw_prompts
from cleft.errors import ConfigError
from cleft.evaluation import Bootstrap, PromptSensitivityOptions, ZeroShotOptions
from cleft.evaluation.predictions import rows_with_one_class
from cleft.evaluation.prompt_sensitivity import evaluate_prompts
from cleft.evaluation.result_files import anonymise, read_evaluation, read_predictions
from cleft.evaluation.scoring import Predictions
from cleft.evaluation.task import prepare
from cleft.evaluation.zero_shot import best_prompt_logits, evaluate_zero_shot, standardise_logits
from cleft.models.checkpoint import load_model, save_model
from cleft.report.run_page import write_report

FEW = Bootstrap(resamples=20)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`gloria`, a run of untrained towers, on images that show nothing."""
    folder = tmp_path_factory.mktemp("similarity")
    data = write_fake_chexpert(folder / "data", untrained_rows(40))
    more = ["--data.dataset=chexpert", "--data.test_fraction=0.5", "--classes=[chexpert-5]", "--text.max_tokens=60"]
    write_untrained_run(folder / "gloria", method_settings("gloria", data, *more))
    write_untrained_runs(folder / "cleft")
    return folder


def evaluate(run, **options):
    path = evaluate_zero_shot(run, ZeroShotOptions(bootstrap=FEW, examples=0, **options), progress=False)
    return path, read_evaluation(path)


def by_hand(run, prompts, *, local_alone=False, letters=False):
    """Logits of ten images, prompt by prompt and word by word, in the order of stored predictions."""
    task = prepare(run, ZeroShotOptions(per_class=2), progress=False)
    model, selected = task.model, task.images
    rows = rows_with_one_class(task.embed(selected, progress=False), task.classes)
    records = [selected.records[row] for row in rows]
    logits = np.zeros((len(rows), len(prompts)))
    with torch.no_grad():
        read = [(words_by_hand(model, prompt), model.encode_text([prompt])[0]) for prompt in prompts]
        for place, record in enumerate(records):
            [batch] = eval_loader([record], selected.prepared, selected.findings, task.settings, batch_size=1)
            regions, image = model.encode_regions(batch.images)[0], model.encode_image(batch.images)[0]
            for column, (words, text) in enumerate(read):
                count = len(prompts[column].split())
                if letters:
                    words = words + [torch.zeros_like(words[0])] * 100
                    count = min(len(prompts[column]), 59)  # text.max_tokens, without the class token
                best = 5 * cosines_by_hand(regions, torch.stack(words[:count])).max()
                logits[place, column] = best if local_alone else (best + image @ text) / 2
    logits *= model.logit_scale.exp().item()
    scored = Predictions(logits, np.zeros(len(records)), [record.patient for record in records])
    return anonymise(scored, [record.id for record in records]).scores


def words_by_hand(model, prompt):
    """The words of a prompt, and the end behind them: sums of pieces and of four layers."""
    tower = model.text_tower
    ids = torch.tensor(tower.tokenizer.encode([prompt]))
    states = torch.stack(tower.lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-4:]).sum(dim=0)[0]
    tokens = tower.tokenizer.hf_tokenizer.convert_ids_to_tokens(ids[0])
    words = []
    for place, token in list(enumerate(tokens))[1:]:
        if place in (1, len(tokens) - 1) or token.startswith("Ġ"):
            words.append(states[place])
        else:
            words[-1] = words[-1] + states[place]
    return words


def cosines_by_hand(regions, words):
    """Each region shares itself among the words; four times that weighs the regions for each word."""
    shares = (regions @ words.T).softmax(dim=1)
    return torch.stack(
        [
            torch.cosine_similarity((4 * share).softmax(dim=0) @ regions, word, dim=0)
            for share, word in zip(shares.T, words, strict=True)
        ]
    )


def stored_scores(path, found):
    return read_predictions(path, found).scores


@pytest.mark.parametrize("similarity", ["local", "both", "released"])
def test_similarities_equal_a_plain_loop(home, similarity):
    path, found = evaluate(home / "gloria", similarity=similarity, per_class=2)
    released = similarity == "released"
    assert found.class_prompts == tuple(class_prompt(name, "there is") for name in CLASSES)
    expected = by_hand(home / "gloria", found.class_prompts, local_alone=similarity == "local", letters=released)
    if released:
        expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(stored_scores(path, found), expected, atol=5e-3 if released else 2e-4)
    assert (found.similarity, found.standardised) == (similarity, released)


def test_the_most_similar_prompt_of_a_class_counts(home):
    path, found = evaluate(home / "gloria", similarity="both", class_names="gloria", per_class=2)
    drawn = [sentence for name in CLASSES for sentence in draw_prompts()[name]]
    best = by_hand(home / "gloria", drawn).reshape(10, 5, 5).max(axis=2)
    np.testing.assert_allclose(stored_scores(path, found), best, atol=2e-4)
    assert found.class_prompts == tuple(drawn)
    assert found.embedding_map is None
    assert "25 prompts for 5 classes; the most similar one of a class counts." in found.notes
    assert found.class_names == "gloria"


def test_every_method_can_use_glorias_prompts_and_standardised_scores(home):
    folder = home / "cleft"
    _, usual = evaluate(folder / "plain")
    _, found = evaluate(folder / "plain", class_names="gloria", standardise=True)
    assert (found.similarity, found.standardised, usual.standardised) == ("global", True, False)
    assert found.ids_digest == usual.ids_digest
    with pytest.raises(ConfigError, match="a learned context needs a phrase for each class"):
        evaluate(folder / "run", class_names="gloria")


def test_predictions_depend_on_other_images_only_if_standardised(home):
    same = {}
    for options in ({"similarity": "both"}, {"similarity": "both", "standardise": True}):
        (few_path, few), (all_path, every) = (
            evaluate(home / "gloria", per_class=2, **options),
            evaluate(home / "gloria", **options),
        )
        rows = {tuple(np.round(row, 3)) for row in stored_scores(all_path, every)}
        apart = [tuple(np.round(row, 3)) in rows for row in stored_scores(few_path, few)]
        same[every.standardised] = apart
        assert any("depends on the other images" in note for note in every.notes) is every.standardised
    assert all(same[False])
    assert not any(same[True])


def test_similarity_is_in_the_command_the_file_name_and_the_page(home, tmp_path):
    path, found = evaluate(home / "gloria", similarity="both", standardise=True)
    assert found.command.endswith("--task zero-shot --similarity both --standardise")
    assert "-both-standardised-" in path.name
    page = write_report([home / "gloria"], tmp_path / "page.html").read_text()
    assert "handwritten prompts, global and local similarity, standardised over the images" in page
    assert "<dt>Similarity</dt><dd>both, standardised over the images</dd>" in page
    assert "Similarity: mean of image with prompt, and of the prompt&#39;s best word" in page


def test_command_line_reuses_stored_similarities(home, capsys):
    words = ["evaluate", str(home / "gloria"), "--similarity", "released", "--class-names", "gloria"]
    assert main(words) == 0
    stored = [file for file in (home / "gloria" / "embeddings").rglob("similarities.safetensors")]
    before = {file: file.stat().st_mtime_ns for file in stored}
    assert main(words) == 0
    assert before == {file: file.stat().st_mtime_ns for file in (home / "gloria").rglob("similarities.safetensors")}
    assert main([*words, "--task", "retrieval"]) == 2
    assert "--similarity released does nothing with --task retrieval" in capsys.readouterr().err
    assert main(["evaluate", str(home / "gloria"), "--task", "prompts", "--standardise"]) == 2
    assert "--standardise does nothing with --task prompts" in capsys.readouterr().err


def test_similarities_and_prompts_the_method_lacks_are_refused(home):
    folder = home / "cleft"
    with pytest.raises(
        ConfigError, match=r"--similarity local compares words with image regions .* is of method=cleft"
    ):
        evaluate(folder / "plain", similarity="local")
    with pytest.raises(ConfigError, match=r"--scoring present-absent needs a phrase for each class"):
        evaluate(home / "gloria", class_names="gloria", scoring="present-absent")
    with pytest.raises(ConfigError, match=r"--task prompts needs a phrase for each class"):
        evaluate_prompts(home / "gloria", PromptSensitivityOptions(class_names="gloria"), progress=False)


def test_word_similarity_needs_handwritten_prompts(home, tmp_path):
    run = shutil.copytree(home / "gloria", tmp_path / "context")
    model = load_model(run)
    model.set_context(torch.zeros(2, 16))
    save_model(model, load_settings(run), run)
    with pytest.raises(ConfigError, match="a learned context has no words; take --prompts handwritten"):
        evaluate(run, similarity="both")
    _, found = evaluate(run, similarity="both", prompts="handwritten", scoring="present-absent", classes="Edema")
    assert found.similarity == "both"


def test_best_prompt_logits_by_hand():
    logits = np.array([[1.0, 5.0, 2.0], [4.0, 3.0, 0.0]])
    assert best_prompt_logits(logits, np.array([0, 1, 0])).tolist() == [[2, 5], [4, 3]]


def test_standardised_logits_by_hand():
    logits = np.array([[1.0, 9.0], [3.0, 9.0], [7.0, 9.0]])
    assert standardise_logits(logits, [0, 1]).tolist() == [[-1, 0], [1, 0], [5, 0]]
    assert standardise_logits(logits, [0]) is logits
    third = np.full((7, 1), 0.1, np.float32)
    assert not standardise_logits(third, range(7)).any()
