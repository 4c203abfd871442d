"""The picture of the loss: where the dots and the line stand."""

from allranks.observe.picture import loss_picture


def test_a_falling_loss_falls_from_left_to_right():
    picture = loss_picture({1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}, width=25, height=4, ascii_only=True)
    assert picture.splitlines() == [
        "  4.000 |*",
        "        |     *",
        "        |          *",
        "  1.000 |               *",
        "        +----------------",
        "         step 1    step 4",
    ]


def test_the_line_stands_between_the_last_step_before_and_the_first_after():
    losses = {step: 1.0 + step / 100 for step in range(1, 101)}
    lines = loss_picture(losses, 61, before="two", after="one", width=109, ascii_only=True).splitlines()
    bar = lines[0].index("|")
    assert lines[0].split() == ["two", "|", "one"]
    assert bar - 9 in (59, 60)  # one column a step, step 1 in column 0
    assert all(line[bar] in "|*" for line in lines[1:-2])


def test_what_is_not_finite_is_left_out():
    assert loss_picture({1: float("nan"), 2: 1.0}) == ""
    assert "step 3" in loss_picture({1: 2.0, 2: float("inf"), 3: 1.0})


def test_a_constant_loss_is_a_flat_line():
    lines = loss_picture(dict.fromkeys(range(100), 2.0), height=3, width=40).splitlines()
    assert set(lines[0].split("┤")[1]) == {"⠉"}
    assert lines[1].split("│")[1] == ""


def test_braille_puts_neighbouring_steps_into_one_cell():
    assert loss_picture({1: 2.0, 2: 2.0}, width=25, height=1).splitlines()[0].endswith("⠈")
