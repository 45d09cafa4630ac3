"""The slots of an answer's blocks."""

from router.slots import Slots


def test_a_run_of_one_kind_stays_in_its_slot() -> None:
    slots = Slots()
    assert [slots.run("text"), slots.run("text"), slots.run("text")] == [0, 0, 0]


def test_another_kind_opens_the_next_slot_and_coming_back_opens_a_new_one() -> None:
    slots = Slots()
    kinds = ("reasoning", "text", "text", "reasoning", "refusal", "text")
    assert [slots.run(kind) for kind in kinds] == [0, 1, 1, 2, 3, 4]


def test_a_tool_call_ends_the_running_block() -> None:
    slots = Slots()
    assert slots.run("text") == 0
    assert slots.open() == 1
    assert slots.open() == 2
    assert slots.run("text") == 3
    assert slots.run("text") == 3


def test_slots_are_dense_from_0_in_the_order_they_open() -> None:
    slots = Slots()
    seen = [slots.open(), slots.run("text"), slots.open(), slots.run("reasoning"), slots.run("text"), slots.open()]
    assert seen == [0, 1, 2, 3, 4, 5]


def test_two_answers_count_apart() -> None:
    first, second = Slots(), Slots()
    assert (first.open(), first.open(), second.open()) == (0, 1, 0)
