"""Slow steps, from recorded times."""

from allranks.observe.slow_steps import SlowSteps

TWO_NODES = (0, 0, 1, 1)


def read(reader, seconds, first=1, **facts):
    """What is said of steps that took so long: step -> text."""
    said = {step: reader.read(step, each, **facts) for step, each in enumerate(seconds, start=first)}
    return {step: text for step, text in said.items() if text}


def test_a_slow_link_is_said_once_with_the_bytes_that_cross_it_and_once_when_it_is_over():
    seconds = [0.18] * 30 + [22.5, 23.0, 22.8, 22.6] + [0.19] * 20
    waits = {"data_seconds": (0.0,) * 4, "cpu_seconds": (0.01,) * 4}
    said = read(SlowSteps(TWO_NODES), seconds, between_nodes_bytes=45_000_000, **waits)
    assert said == {
        31: "step 31 took 22.5 s, 125 times the median of the 30 steps before (0.18 s): no rank waited long for data "
        "or for a CPU; 45.0 MB cross between nodes in a step, here 2.00 MB/s: look at the network between them, and at "
        "the load of each node",
        39: "steps take 0.18 s again since step 35: 4 steps were slow, 90.2 s lost",
    }


def test_a_straggler_is_named_with_what_it_waited_for():
    reader = SlowSteps(TWO_NODES)
    read(reader, [0.2] * 10)
    said = reader.read(11, 3.2, data_seconds=(0.0,) * 4, cpu_seconds=(0.1, 0.0, 0.1, 2.8), between_nodes_bytes=1000)
    assert (
        said
        == "step 11 took 3.2 s, 16 times the median of the 10 steps before (0.2 s): rank 3 waited 2.8 s of it for a CPU"
    )
    reader = SlowSteps()
    read(reader, [0.2] * 10)
    assert "rank 0 waited 1.9 s of it for data" in reader.read(11, 3.2, data_seconds=(1.9,), cpu_seconds=(0.0,))


def test_a_wait_that_explains_less_than_half_names_nobody():
    reader = SlowSteps((0, 1))
    read(reader, [0.2] * 10)
    said = reader.read(11, 3.2, data_seconds=(0.0, 1.4), cpu_seconds=(0.0, 0.0))
    assert "rank 1" not in said and said.endswith("look at the network between the nodes, and at the load of each node")


def test_on_one_node_nothing_is_said_of_a_network():
    reader = SlowSteps((0, 0))
    read(reader, [0.2] * 10)
    assert reader.read(11, 9.0).endswith("times the median of the 10 steps before (0.2 s)")


def test_a_link_that_stays_slow_is_said_once():
    assert list(read(SlowSteps(), [0.1] * 10 + [5.0] * 300)) == [11]


def test_short_steps_are_worth_a_word_only_when_they_add_up():
    assert read(SlowSteps(), [0.01] * 20 + [0.5] + [0.01] * 20) == {}
    assert list(read(SlowSteps(), [0.01] * 20 + [0.5] * 9)) == [23]


def test_steps_of_batches_of_other_lengths_are_not_slow():
    assert read(SlowSteps(), [1.0, 4.0, 2.0, 1.0, 3.0] * 20) == {}


def test_the_first_steps_are_not_measured_against_anything():
    """Compilation and DDP's buckets: the first steps take longest."""
    assert read(SlowSteps(), [90.0, 30.0, 1.0, 1.0, 1.0, 1.0]) == {}
    assert list(read(SlowSteps(), [90.0, *[1.0] * 8, 20.0])) == [10]


def test_now_and_then_a_slow_step_among_usual_ones_is_one_stretch():
    seconds = [0.5] * 10 + [9.0, 0.5, 0.5, 9.0, 0.5, 0.5, 9.0] + [0.5] * 8
    said = read(SlowSteps(), seconds)
    assert list(said) == [11, 22]
    assert said[22] == "steps take 0.5 s again since step 18: 3 steps were slow, 25.5 s lost"


def test_the_next_stretch_is_said_again():
    again = [0.5] * 10 + [9.0] + [0.5] * 10
    assert list(read(SlowSteps(), again * 2)) == [11, 16, 32, 37]
