"""The report of a run: any name, any domain, and no plot that ends a training."""

import json
from dataclasses import fields

import pytest
from matplotlib.text import Text

from mindpangu import figures
from mindpangu.config.run_folder import RunFolder
from mindpangu.train.callbacks import StepRecord
from mindpangu.train.report import write_report

DOMAINS = ["_hidden", "中文", "zh", "$x_{"]


def finished_run(folder):
    """Writes the metrics of a run of three steps."""
    folder.mkdir(parents=True)
    numbers = {field.name: 1.5 for field in fields(StepRecord)}
    records = [
        numbers | {"step": step, "skipped": None, "domains": dict.fromkeys(DOMAINS, 2.0 + step)} for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return RunFolder(folder)


@pytest.mark.parametrize("name", ["$", "a$b_{c", r"\alpha$^", "中文$1$", "\udcb2\udce2", "x\x1b[2J", "plain"])
def test_a_run_of_any_name_gets_its_report_and_plot(tmp_path, capsys, name):
    run = finished_run(tmp_path / name)

    write_report(run)

    assert run.loss_plot.read_bytes().startswith(b"\x89PNG")
    report = run.report.read_text("utf-8")
    assert "![loss](loss.png)" in report
    assert "| steps | 3 |" in report
    assert "\x1b" not in report
    assert capsys.readouterr().out.count("\n") <= 1


def test_the_legend_has_every_domain(tmp_path, monkeypatch):
    shown = []
    prepare = figures._show_literally
    monkeypatch.setattr(figures, "_show_literally", lambda texts: shown.extend(texts) or prepare(texts))

    write_report(finished_run(tmp_path / "run"))

    assert all(isinstance(text, Text) for text in shown)
    assert set(DOMAINS) <= {text.get_text() for text in shown}


def test_a_plot_that_fails_leaves_a_complete_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "_show_literally", lambda texts: 1 / 0)
    run = finished_run(tmp_path / "run")

    write_report(run)

    assert "loss.png is left out: ZeroDivisionError" in capsys.readouterr().out
    report = run.report.read_text("utf-8")
    assert "loss.png" not in report
    assert "| steps | 3 |" in report


def test_samples_are_shown_harmlessly(tmp_path):
    run = finished_run(tmp_path / "run")
    sample = {"domain": "zh", "prompt": "a\x1b[2J", "continuation": "\u202eb\n\tc"}
    run.samples.write_text(json.dumps({"samples": [sample]}), "utf-8")

    write_report(run)

    assert "a\\x1b[2J⟶\\u202eb\n\tc" in run.report.read_text("utf-8")
