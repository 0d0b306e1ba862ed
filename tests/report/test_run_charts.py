"""Training curves, reliability diagrams, embedding maps, subgroups and comparisons."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest
from tests.fakes.fake_runs import FIVE, evaluation, result, write_run
from tests.fakes.fake_studies import audit, calibration, space, subgroups

from cleft.report.run_charts import (
    comparison_table,
    corrected_comparisons,
    difference_limit,
    embedding_chart,
    format_difference,
    norms_chart,
    place_names,
    reliability_chart,
    subgroup_table,
    training_charts,
)
from cleft.report.runs import read_runs
from cleft.report.tables import group_results
from cleft.results import Comparison, Difference, EmbeddingMap, ReliabilityBin


def charts(folder, table):
    run = write_run(folder / "run")
    (run / "logs" / "metrics.csv").write_text(table)
    return {chart.title: chart for chart in training_charts(read_runs([run])[0])}


def test_token_counts_share_a_chart(tmp_path):
    found = charts(tmp_path, "step,nodes,padded_tokens\n1,170,4608\n2,180,4608\n")
    assert [name for _, name in found["Caption tokens per step"].legend] == ["prefix tree", "padded"]


def test_constant_quantities_have_no_chart_except_the_loss(tmp_path):
    assert list(charts(tmp_path, "step,train/loss,clamped_steps\n1,2,0\n2,2,0\n")) == ["Loss"]


def test_log_columns_of_both_stages_are_recognised(tmp_path):
    found = charts(tmp_path, "step,context/train/loss,context/val/loss,context/lr\n1,2,3,0.1\n2,1,2,0.2\n")
    assert list(found) == ["Loss", "Learning rate"]
    assert found["Loss"].caption == "Lowest validation loss 2 at step 2 (circled)."
    assert found["Loss"].large
    assert not found["Learning rate"].large


def bins(*pairs, patients=50):
    return tuple(ReliabilityBin(predicted=p, observed=o, images=60, patients=patients) for p, o in pairs)


def test_reliability_bins_are_drawn_at_predicted_and_observed():
    changed = dataclasses.replace(calibration(), bins=bins((0.5, 0.25)), bins_after=())
    assert 'cx="110.0" cy="128.0"' in reliability_chart("t", changed, 0, synthetic=True)


def test_bins_after_temperature_scaling_are_hollow_and_dashed():
    changed = dataclasses.replace(calibration(), bins=(), bins_after=bins((0.5, 0.5)))
    figure = reliability_chart("t", changed, 0, synthetic=True)
    assert 'cx="110.0" cy="88.0" r="2.8" fill="#fff"' in figure
    assert 'stroke-dasharray="2 3"' in figure


def test_bins_of_few_patients_are_drawn_for_synthetic_images_only():
    changed = dataclasses.replace(calibration(), bins=bins((0.5, 0.25), patients=4), bins_after=())
    assert 'class="dot"' not in reliability_chart("t", changed, 0, synthetic=False)
    assert 'class="dot"' in reliability_chart("t", changed, 0, synthetic=True)


def test_embedding_map_has_equal_axes():
    found = EmbeddingMap(
        images=((0, 1.0, 0.0), (1, 0.0, 1.0)), prompts=((-1.0, 0), (0, -1.0)), explained_variance=(1, 0), modality_gap=0
    )
    figure = embedding_chart("t", found, ("A", "B"))
    reach = 174 / 1.06
    assert f'class="dot" cx="{180 + reach:.1f}" cy="180.0"' in figure  # the image of class A, to the right
    assert f'class="prompt" cx="{180 - reach:.1f}" cy="180.0"' in figure
    assert f'class="prompt" cx="180.0" cy="{180 + reach:.1f}"' in figure  # up is up


def test_embedding_map_omits_hidden_classes():
    assert embedding_chart("t", space(), FIVE).count('class="dot"') == 200 + 5
    assert embedding_chart("t", space(), FIVE, hidden=["Edema"]).count('class="dot"') == 160 + 5


def test_names_avoid_each_other_and_the_frame():
    assert place_names([(100.0, 100.0)], ["Edema"]) == [(110.0, 104.0, "start")]
    assert place_names([(345.0, 100.0)], ["Edema"]) == [(335.0, 104.0, "end")]
    places = place_names([(100.0, 100.0), (125.0, 100.0)], ["Edema", "Edema"])
    assert places == [(90.0, 104.0, "end"), (135.0, 104.0, "start")]


def test_norms_chart_draws_norms_distances_and_token_norm():
    changed = audit().prompt_sensitivity
    vector = dataclasses.replace(changed.context[0], position=1, norm=1.0, displacement=0.5)
    figure = norms_chart("t", [vector], 2.0)
    assert re.search(r'd="M291\.0 192\.0V107\.0"', figure)
    assert 'cx="291.0" cy="149.5" r="3" fill="#fff"' in figure
    assert 'class="chance" d="M46.0 22.0h490.0"' in figure


def test_vector_without_initial_value_has_no_circle():
    changed = dataclasses.replace(audit().prompt_sensitivity.context[0], displacement=None)
    assert 'class="dot"' not in norms_chart("t", [changed], None)


@pytest.mark.parametrize("length", [1, 12, 13, 30, 77, 500])
def test_norms_chart_has_at_most_thirteen_ticks(length):
    changed = [
        dataclasses.replace(audit().prompt_sensitivity.context[0], position=place + 1) for place in range(length)
    ]
    assert 1 <= norms_chart("t", changed, None).count('class="tick"') <= 13


def test_every_figure_is_well_formed_and_says_what_it_is():
    title = '<b>"space" & more'
    figures = (
        reliability_chart(title, calibration(), 3, synthetic=True),
        embedding_chart(title, space((title,) * 5), (title,) * 5),
        norms_chart(title, audit().prompt_sensitivity.context, 1.0),
    )
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert (root.attrib["aria-label"], root.attrib["role"]) == (title, "img")


def group_of(tmp_path, *evaluations):
    return group_results(read_runs([write_run(tmp_path / str(place), each) for place, each in enumerate(evaluations)]))[
        0
    ]


def test_subgroup_table_has_all_groups_and_the_gap(tmp_path):
    table = subgroup_table(group_of(tmp_path, evaluation(0.6, subgroups=subgroups(0.6))), "sex")
    assert [(row.label, row.sublabel) for row in table.rows] == [
        ("M", "580 images of 560 patients"),
        ("F", "420 images of 400 patients"),
        ("Best minus worst", ""),
    ]
    assert [row.cells[0].text for row in table.rows] == ["62.0\u202f%", "58.0\u202f%", "+4.0"]
    assert table.rows[-1].cells[0].detail == "+1.0 to +7.0, best M, worst F"


def test_subgroup_charts_mark_the_overall_value(tmp_path):
    table = subgroup_table(group_of(tmp_path, evaluation(0.6, subgroups=subgroups(0.6))), "sex")
    assert table.axis_ends[0] == ("50\u202f%", "70\u202f%")
    assert 'class="level" d="M70.0 1V11"' in table.rows[0].cells[0].chart  # 60 % is in the middle


def test_subgroups_of_several_models_share_one_axis(tmp_path):
    group = group_of(tmp_path, evaluation(0.6, subgroups=subgroups(0.6)), evaluation(0.4, subgroups=subgroups(0.4)))
    table = subgroup_table(group, "sex")
    assert [row.label for row in table.rows if row.kind == "heading"] == [entry.label for entry in group]
    assert table.axis_ends[0] == ("30\u202f%", "70\u202f%")


def test_models_without_subgroups_are_left_out(tmp_path):
    group = group_of(tmp_path, evaluation(0.6, subgroups=subgroups()), evaluation(0.4))
    assert not [row for row in subgroup_table(group, "sex").rows if row.kind == "heading"]
    assert subgroup_table(group, "scanner") is None


def test_subgroup_table_counts_left_out_images(tmp_path):
    table = subgroup_table(group_of(tmp_path, evaluation(0.6, subgroups=subgroups())), "age")
    assert table.rows[-1].sublabel == "3 images in smaller groups; 17 images without this attribute"


def test_small_groups_are_suppressed_unless_synthetic(tmp_path):
    found = subgroups()[0]
    few = dataclasses.replace(found, groups=(dataclasses.replace(found.groups[0], patients=4), found.groups[1]))
    real = subgroup_table(group_of(tmp_path / "a", evaluation(0.6, subgroups=(few,), synthetic=False)), "sex")
    drawn = subgroup_table(group_of(tmp_path / "b", evaluation(0.6, subgroups=(few,))), "sex")
    assert (real.rows[0].cells[0].text, real.rows[0].sublabel) == ("–", "fewer than 5 patients")
    assert drawn.rows[0].cells[0].text == "62.0\u202f%"


def test_missing_gap_has_a_reason(tmp_path):
    gap = result("accuracy", None, reason="no two groups of twenty patients")
    found = dataclasses.replace(subgroups()[0], gaps=(gap,))
    table = subgroup_table(group_of(tmp_path, evaluation(0.6, subgroups=(found,))), "sex")
    assert table.rows[-1].cells[0].text == "–"
    assert ("a", "no two groups of twenty patients") in table.footnotes
    assert ("b", "no difference in the result file") in table.footnotes


def difference(metric="accuracy", value=0.05, **changes):
    made = Difference(
        metric=metric,
        first=0.65,
        second=0.6,
        difference=value,
        interval=(value - 0.02, value + 0.02),
        p_value=0.004,
        images=1000,
        patients=966,
    )
    return dataclasses.replace(made, **changes)


def comparison(*differences, **changes):
    made = Comparison(
        first="lora",
        second="ia3",
        first_result="zero-shot.json",
        second_result="zero-shot.json",
        first_task="zero-shot",
        second_task="zero-shot",
        first_checkpoint="a" * 16,
        second_checkpoint="b" * 16,
        dataset="chexpert",
        split="test",
        ids_digest="56dfdc4473b683b4",
        scoring="multi-class",
        classes=("Edema", "Pneumonia"),
        differences=differences or (difference(),),
        synthetic=True,
        resamples=1000,
    )
    return dataclasses.replace(made, **changes)


def test_comparison_table_formats_differences():
    table = comparison_table(comparison(difference(value=-0.05)))
    assert table.columns == ["lora", "ia3", "Difference", "p", "p (Holm)"]
    first, second, change, p, corrected = table.rows[0].cells
    assert (first.text, second.text) == ("65.0\u202f%", "60.0\u202f%")
    assert (change.text, change.detail, p.text, corrected.text) == ("−5.0", "−7.0 to −3.0", "<0.01", "<0.01")
    assert 'class="level" d="M70.0 1V11"' in change.chart
    assert float(re.search(r'cx="([\d.]+)"', change.chart).group(1)) == 70 - 0.05 / 0.1 * 65


def test_axis_of_differences_is_symmetric():
    assert difference_limit(comparison(difference(value=-0.25))) == 0.3
    assert comparison_table(comparison()).axis_ends[2] == ("−0.1", "+0.1")


def test_missing_differences_have_reasons():
    gone = difference(difference=None, interval=None, p_value=None, reason="no image shows Edema")
    few = difference(patients=4)
    table = comparison_table(comparison(gone, few, synthetic=False))
    assert [row.cells[2].text for row in table.rows] == ["–", "–"]
    assert [cell.text for cell in table.rows[1].cells] == ["–"] * 5
    assert [reason for _, reason in table.footnotes] == ["no image shows Edema", "fewer than 5 patients"]


def test_p_values_are_corrected_over_the_page():
    one = comparison(difference(p_value=0.02), difference("auc", p_value=None, interval=None))
    other = comparison(difference(p_value=0.03), difference("auc", p_value=0.004))
    corrected, family = corrected_comparisons([one, other])
    assert family == 3
    assert corrected == [[pytest.approx(0.04), None], [pytest.approx(0.04), pytest.approx(0.012)]]
    table = comparison_table(other, corrected[1])
    assert [row.cells[4].text for row in table.rows] == ["0.04", "0.01"]


def test_differences_of_percentages_are_in_points():
    assert (format_difference("sensitivity@0.90", 0.1), format_difference("auc/Edema", 0.1)) == ("+10.0", "+0.100")
