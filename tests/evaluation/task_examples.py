"""For each task: small files in the form of its publisher, and the right answer of each of their questions."""

import json


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def pairs(labels):
    return lines(
        {"sentence1": "他在家", "sentence2": "他不在外面", "label": labels[0], "id": 0},
        # Python's splitlines would cut this record
        *({"sentence1": "他在家\u2028里", "sentence2": "他", "label": label} for label in labels[1:]),
    )


def statements(labels, **fields):
    return lines(*({**fields, "label": label, "idx": i} for i, label in enumerate(labels)))


C3 = [
    [["男：你好！", "女：再见。"], [{"question": "谁先说？", "choice": ["男的", "女的"], "answer": "男的"}], "1-1"],
    [["一段话。"], [{"question": "什么？", "choice": ["书", "话", "人"], "answer": "话"}], "1-2"],
]
TARGET = {"span1_index": 0, "span1_text": "毛豆", "span2_index": 2, "span2_text": "他"}
PASSAGE = {
    "text": "A man came.",
    "questions": [{"question": "Who?", "answers": [{"text": "A man", "label": 1}, {"text": "A cat", "label": 0}]}],
}
MMLU = 'question,choice0,choice1,choice2,choice3,answer\n"One, two?",1,2,3,4,2\nThree?,a,b,c,d,0\n'
WITHOUT_HEADER = '"One, two?",1,2,3,4,C\nThree?,a,b,c,d,A\n'

CEVAL = "id,question,A,B,C,D,answer\n0,一加一？,1,2,3,4,B\n1,二加二？,1,2,3,4,D\n"
CMMLU = ",Question,A,B,C,D,Answer\n0,一加一？,1,2,3,4,B\n"


def stems(answers, labels):
    choices = [{"text": f"fact {label}", "label": label} for label in labels]
    return lines(
        *(
            {"id": str(i), "question": {"stem": "Why?", "choices": choices}, "answerKey": answer}
            for i, answer in enumerate(answers)
        )
    )


FILES = {
    "afqmc": ({"afqmc/dev.json": pairs(["0", "1"])}, [1, 0]),
    "arc_challenge": ({"arc/ARC-Challenge-Test.jsonl": stems(["2", "1"], "123")}, [1, 0]),
    "arc_easy": ({"ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl": stems("AD", "ABCD")}, [0, 3]),
    "ax_b": (
        {"AX-b/AX-b.jsonl": statements(["not_entailment", "entailment"], sentence1="It is.", sentence2="It was.")},
        [1, 0],
    ),
    "bustm": ({"fewclue/bustm/test_public.json": pairs(["1", "0"])}, [0, 1]),
    "ceval": ({"ceval/val/law_val.csv": CEVAL, "ceval/val/art_val.csv": CEVAL}, [1, 3, 1, 3]),
    "cmmlu": ({"cmmlu/test/anatomy.csv": CMMLU}, [1]),
    "hellaswag": (
        {
            "hellaswag/hellaswag_val.jsonl": lines(
                {"ctx": "A man sits", "activity_label": "Sitting", "endings": ["down.", "up."], "label": 0}
            )
        },
        [0],
    ),
    "openbookqa": ({"openbookqa/test.jsonl": stems("BA", "ABCD")}, [1, 0]),
    "boolq": ({"BoolQ/val.jsonl": statements([True, False], question="is it", passage="It is.")}, [0, 1]),
    "c3": ({"c3/c3-m-dev.json": json.dumps(C3), "c3/c3-d-dev.json": json.dumps(C3[:1])}, [0, 1, 0]),
    "cb": (
        {"superglue/CB/val.jsonl": statements(["neutral", "entailment"], premise="It is so.", hypothesis="It is")},
        [2, 0],
    ),
    "chid": (
        {
            "fewclue/chid/test_public.json": lines(
                {"id": 0, "candidates": ["严阵以待", "改朝换代"], "content": "到#idiom#的机遇", "answer": 1}
            )
        },
        [1],
    ),
    "cluewsc": ({"cluewsc2020/dev.json": statements(["true", "false"], target=TARGET, text="毛豆说他累")}, [0, 1]),
    "cmnli": ({"cmnli/dev.json": pairs(["neutral", "-", "contradiction"])}, [1, 2]),
    "copa": (
        {
            "COPA/val.jsonl": lines(
                {"premise": "It broke.", "choice1": "It fell.", "choice2": "It sang.", "question": "cause", "label": 0}
            )
        },
        [0],
    ),
    "csl": ({"csl/dev.json": statements(["1", "0"], abst="一段摘要", keyword=["一", "摘要"])}, [0, 1]),
    "eprstmt": ({"fewclue/eprstmt/test_public.json": statements(["Negative", "Positive"], sentence="不错")}, [1, 0]),
    "iflytek": (
        {
            "iflytek/dev.json": lines(
                *({"label": i, "label_des": each, "sentence": "一个应用"} for i, each in enumerate("甲乙丙丁戊"))
            )
        },
        None,
    ),
    "mmlu": (
        {"mmlu/test/college_law_test.csv": MMLU, "mmlu/test/zoology_test.csv": WITHOUT_HEADER},
        [2, 0, 2, 0],
    ),
    "multirc": ({"MultiRC/val.jsonl": lines({"idx": 0, "passage": PASSAGE})}, [0, 1]),
    "ocnli": ({"ocnli/dev.json": pairs(["entailment", "-", "contradiction"])}, [0, 2]),
    "piqa": (
        {
            "piqa/valid.jsonl": lines(*({"goal": "sit", "sol1": "on a chair", "sol2": "on a pin"} for _ in range(2))),
            "piqa/valid-labels.lst": "0\n1\n",
        },
        [0, 1],
    ),
    "rte": (
        {"RTE/val.jsonl": statements(["not_entailment", "entailment"], premise="It is.", hypothesis="It is.")},
        [1, 0],
    ),
    "tnews": (
        {
            "tnews/dev.json": lines(
                {"label": "100", "label_desc": "news_story", "sentence": "一条新闻"},
                {"label": 114, "label_desc": "news_stock", "sentence": "一条新闻"},
            )
        },
        None,
    ),
    "wic": (
        {"WiC/val.jsonl": statements([True, False], word="feel", sentence1="You feel it.", sentence2="I feel.")},
        [0, 1],
    ),
    "wsc": (
        {
            "WSC/val.jsonl": statements(
                [True, False], text="Tina says she is", target=TARGET | {"span1_text": "Tina", "span2_text": "she"}
            )
        },
        [0, 1],
    ),
    "xcopa_zh": (
        {
            "xcopa/zh/test.zh.jsonl": lines(
                {"premise": "门开了。", "choice1": "有风。", "choice2": "有书。", "question": "cause", "label": 1}
            )
        },
        [1],
    ),
}
"""Name of the task → (path → content, answers); None instead of answers where the choices are drawn."""


def write_files(name, folder):
    """Writes the task's files. Returns the folder."""
    for path, content in FILES[name][0].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    return folder
