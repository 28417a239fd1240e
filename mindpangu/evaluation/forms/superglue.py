"""The files of SuperGLUE (arXiv 1905.00537): its own validation sets, or the 32 labelled examples of FewGLUE."""


def layouts(name: str) -> tuple[tuple[str, ...], ...]:
    """Returns where the file of a task may lie."""
    return ((f"superglue/{name}/val.jsonl",), (f"{name}/val.jsonl",), (f"fewglue/{name}.train.jsonl",))


PUBLISHED = "https://super.gluebenchmark.com/tasks"
