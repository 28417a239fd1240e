"""Three wrong choices for a question that has one of many labels, as in PanGu-α's evaluation (arXiv 2104.12369)."""

import random
from collections.abc import Iterable


def with_three_others(label: str, labels: Iterable[str], question: int) -> tuple[tuple[str, ...], int]:
    """Returns the label and three others in random order, and the index of the label.

    Args:
        labels: all labels, in an order that does not change.
        question: index of the question, which seeds the choice, so that every model gets the same choices.
    """
    drawn = random.Random(question)
    choices = [label, *drawn.sample([each for each in labels if each != label], 3)]
    drawn.shuffle(choices)
    return tuple(choices), choices.index(label)
