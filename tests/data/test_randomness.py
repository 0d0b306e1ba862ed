from cleft.data.randomness import Stream, counted


def test_draws_are_the_same_on_every_machine_and_version():
    draws = counted(7, Stream.AUGMENT, 3, 11).random(3)
    assert [draw.hex() for draw in draws.tolist()] == [
        "0x1.dc16bd4b6755ep-2",
        "0x1.5eb85c2f1ff01p-1",
        "0x1.2277f47b59791p-1",
    ]


def test_positions_streams_and_seeds_do_not_meet():
    at = [(0, Stream.ORDER, 0, 0), (1, Stream.ORDER, 0, 0), (0, Stream.AUGMENT, 0, 0), (0, Stream.ORDER, 1, 0)]
    assert len({counted(*where).random() for where in [*at, (0, Stream.ORDER, 0, 1)]}) == 5


def test_a_negative_seed_is_a_seed_like_others():
    assert counted(-1, Stream.ORDER, 0).random() == counted(2**64 - 1, Stream.ORDER, 0).random()
