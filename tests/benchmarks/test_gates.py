"""Promises about speed, memory and size that any machine can check; wide where they are times.

Others are kept where their subject is: G1 (exact values and gradients) in models/test_text.py, G2 (the first
end-of-text token) in parity/test_official.py, G5's operations per node and G7 (every LoRA matrix learns) in
models/test_adapt.py, G6 (the data path) in test_data_path.py.
"""

import pytest
import torch

from bench import Bench, largest_errors, try_once
from captions import draw_batch, independent_findings, read_label_sets
from cleft.models.methods import build_model
from cleft.models.prefix_tree import PrefixTree
from cleft.models.text_tower import build_text_tower
from cleft.training.pretrain import PretrainModule
from sizes import SIZES
from text_tower import TextPass, stir
from timing import interleave
from ways import CHECKPOINTED, DISTINCT, LONGEST, PADDED, RELEASED, TREE, WAYS, Reader, TextWork, image_flops
from whole_step import IMAGE_ALONE, Step

CPU = torch.device("cpu")
BENCH = Bench(device=CPU, half=False, rounds=3, limit=60.0)
CAPTIONS = independent_findings()


@pytest.fixture(scope="module")
def tower():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_text_tower(SIZES["tiny"].text, CAPTIONS.texts).train()
        stir(built)
    return built


@pytest.fixture(scope="module")
def paper_work():
    return TextWork(SIZES["paper"].text, CAPTIONS.texts)


@pytest.fixture
def reader(tower):
    return Reader(tower, draw_batch(CAPTIONS, 72, seed=0))


def test_g3_the_tree_beats_padding_to_64_eightfold_and_padding_to_the_longest_twice(reader):
    run = TextPass(reader, BENCH)
    trials = {way: try_once(run, way) for way in (PADDED, LONGEST, TREE)}
    largest_errors(trials, PADDED, BENCH)  # what is not equal is not timed
    spreads = BENCH.take_turns({way: lambda way=way: run(way) for way in trials})
    assert spreads[PADDED].median > 8 * spreads[TREE].median
    assert spreads[LONGEST].median > 2 * spreads[TREE].median


def test_the_tree_holds_a_third_of_the_memory_of_any_padding(reader):
    run = TextPass(reader, BENCH)
    held = {way: try_once(run, way).peak.above for way in WAYS if way != RELEASED}
    assert all(3 * held[TREE] < held[way] for way in held if way != TREE)
    assert held[CHECKPOINTED] < held[PADDED] / 2


@pytest.mark.benchmark
def test_g4_a_step_costs_a_quarter_more_than_the_image_tower_alone_at_most():
    # The image tower is the one of which the text tower is as many times the work as in the paper's pair; beside the
    # paper's image tower a text tower of this size would be nothing.
    settings = SIZES["scaled"]
    torch.manual_seed(0)
    model = build_model(settings, CAPTIONS.texts).train()
    reader = Reader(model.text_tower, draw_batch(CAPTIONS, 72, seed=0))
    images = torch.randint(256, (72, 1, *model.image_spec.size), dtype=torch.uint8)
    step = Step(model, reader, images, settings, BENCH)
    largest_errors({way: try_once(step, way) for way in (DISTINCT, TREE)}, DISTINCT, BENCH)
    spreads = BENCH.take_turns({way: lambda way=way: step.learn(way) for way in (TREE, IMAGE_ALONE)})
    assert spreads[TREE].median < 1.25 * spreads[IMAGE_ALONE].median


def test_g4_by_operations_at_the_true_size(tower, paper_work):
    paper = SIZES["paper"]
    image = image_flops(paper.image, paper.images, 1)
    for batch, most in [(72, 0.25), (1024, 0.08)]:
        nodes = Reader(tower, draw_batch(CAPTIONS, batch, seed=0)).shape(TREE)
        assert paper_work.flops(nodes) < most * batch * image


def test_g5_the_tree_has_one_node_per_distinct_prefix(reader):
    reader.read(TREE)
    ids = reader.tower.tokenizer.encode(reader.texts)
    prefixes = {tuple(text[:end]) for text in ids for end in range(1, len(text) + 1)}
    assert reader.tower.stats.nodes == len(prefixes)
    assert reader.tower.stats.padded_tokens == 72 * 64


def test_g5_at_the_true_size_the_tree_does_a_twentieth_of_the_work(reader, paper_work):
    padded = paper_work.flops(reader.shape(PADDED))
    assert 20 * paper_work.flops(reader.shape(TREE)) < padded
    # Checkpointing runs the blocks forward again, but for their last product (a third): no gradient needs its result.
    assert paper_work.flops(reader.shape(PADDED), CHECKPOINTED) / padded == pytest.approx(4 / 3, abs=0.02)
    assert paper_work.flops(reader.shape(PADDED), RELEASED) / padded == pytest.approx(1 / 2, abs=0.02)


def test_g8_a_training_state_at_the_true_size_holds_what_trains_and_fits_1_1_gb():
    settings = SIZES["paper"]
    with torch.device("meta"):
        learner = PretrainModule(build_model(settings, CAPTIONS.texts), settings, CAPTIONS.texts)
    checkpoint = {"state_dict": learner.state_dict()}
    learner.on_save_checkpoint(checkpoint)
    kept = checkpoint["state_dict"]
    assert sum(weight.numel() for weight in learner.parameters()) > 2.5e9
    # Adam keeps two numbers of each weight besides.
    size = sum(3 * tensor.numel() * tensor.element_size() for tensor in kept.values())
    assert size < 1.1e9
    moving = {name for name, weight in learner.named_parameters() if weight.requires_grad}
    assert set(kept) - moving == {"clamped"}
    assert all(kept[name].dtype == torch.float32 for name in moving)


@pytest.mark.parametrize("real", [False, True])
def test_cutting_the_tree_of_4096_captions_takes_2_percent_of_a_step(tower, real, request):
    captions = CAPTIONS
    if real:
        captions = read_label_sets(request.getfixturevalue("shared") / "data/chexpert-label-sets/label_sets.csv")
    texts = draw_batch(captions, 4096, seed=0)
    tree = PrefixTree(tower.tokenizer.encode, mask_eos_self=True)
    tree.rows(captions.texts)
    # Less than a step: a small language model by itself, without images.
    reader = Reader(tower, texts)
    works = {"cut": lambda: tree.subtree(texts), "read": lambda: reader.read(TREE).sum().backward()}
    spreads = interleave(works, CPU, rounds=5, warm_up=1)
    assert spreads["cut"].median < 0.02 * spreads["read"].median
