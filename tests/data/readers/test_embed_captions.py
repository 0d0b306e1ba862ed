import pytest
from tests.fakes.embed import DIAGNOSTIC, file_row, finding_row, write_fake_embed

from cleft.config import DataConfig
from cleft.data.readers.embed import read_embed
from cleft.data.readers.embed_captions import MAMMOGRAM_PREFIX, Facts, mammogram_caption

KNOWN = Facts(
    birads=4,
    density=3,
    side="R",
    view="MLO",
    procedure="MG Diagnostic Bilateral",
    age=57,
    race="African American or Black",
    ethnicity="Hispanic or Latino",
    mass_shape="X",
    mass_density="=",
    calcification="A",
    distribution="G",
)


def test_the_simple_caption_begins_as_class_prompts_do():
    assert mammogram_caption(KNOWN, "simple") == (
        f"{MAMMOGRAM_PREFIX} breast tissue density 3 heterogeneously dense with birads score 4 suspicious abnormality"
    )


def test_the_sided_caption_names_side_and_view():
    assert mammogram_caption(KNOWN, "sided") == (
        "this is a breast 2d full field digital mammogram of a patient on side right with view mlo with breast tissue "
        "density 3 heterogeneously dense with birads score 4 suspicious abnormality"
    )


def test_the_natural_caption_is_a_short_report():
    assert mammogram_caption(KNOWN, "natural") == (
        "this is a breast 2d full field digital diagnostic mammogram of a patient this patient is african american or "
        "black hispanic or latino and 57 years old this mammogram is for right breast with mlo view the breast is "
        "heterogeneously dense this may lower the sensitivity of mammography the mammogram shows that a suspicious "
        "abnormality is present the mass is irregular and isodense a grouped amorphous calcification is present "
        "impressions bi rads category 4 suspicious abnormality"
    )


def test_the_structured_caption_has_headings():
    assert mammogram_caption(KNOWN, "structured") == (
        "procedure reported mg diagnostic bilateral reason for procedure diagnostic patient info this patient is "
        "african american or black hispanic or latino and 57 years old image info this is a 2d full field digital "
        "mammogram of the right breast with mlo view breast composition the breast is heterogeneously dense this may "
        "lower the sensitivity of mammography findings the mammogram shows that a suspicious abnormality is present "
        "the mass is irregular and isodense a grouped amorphous calcification is present impressions bi rads category "
        "4 suspicious abnormality overall assessment suspicious abnormality"
    )


@pytest.mark.parametrize(("style", "fewest", "most"), [("simple", 24, 28), ("sided", 30, 34)])
def test_captions_are_as_long_as_those_of_the_authors(style, fewest, most):
    lengths = [
        len(mammogram_caption(KNOWN._replace(birads=birads, density=density), style).split())
        for birads in range(7)
        for density in range(1, 5)
    ]
    assert (min(lengths), max(lengths)) == (fewest, most)


@pytest.mark.parametrize("style", ["simple", "sided", "natural", "structured"])
def test_unknown_facts_are_omitted(style):
    caption = mammogram_caption(Facts(birads=1), style)
    assert "negative" in caption
    for word in ("unknown", "none", "density", "hispanic", "years", "side", "view", "left", "procedure", "the mass"):
        assert f" {word} " not in f" {caption} "


def test_a_sentence_without_an_assessment_has_no_impression():
    assert mammogram_caption(KNOWN._replace(birads=None), "natural").endswith("sensitivity of mammography")


def test_an_unknown_ethnicity_is_not_called_non_hispanic(tmp_path):
    findings = [finding_row(RACE_DESC="Not Recorded", ETHNIC_GROUP_DESC='"Unreported, Unknown, Unavailable"')]
    reading = read_embed(
        DataConfig(dataset="embed", root=write_fake_embed(tmp_path, findings=findings), caption="natural")
    ).checked()
    assert "this patient is 57 years old this mammogram" in (reading.records[0].caption or "")


def test_a_breast_that_is_negative_by_implication_has_no_mass(tmp_path):
    findings = [finding_row("S", "L", desc=DIAGNOSTIC, massshape="O", massdens="+")]
    files = [file_row("left"), file_row("right", side="R")]
    root = write_fake_embed(tmp_path, files, findings)
    left, right = (
        record.caption or ""
        for record in read_embed(DataConfig(dataset="embed", root=root, caption="natural")).checked().records
    )
    assert "the mass is oval and high density" in left
    assert "mass is" not in right
    assert right.endswith("impressions bi rads category 1 negative")
