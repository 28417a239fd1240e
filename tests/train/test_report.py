"""The report of a run: what it says of the files in the run folder, for any names; no plot ends a training."""

import json
from dataclasses import asdict, replace

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mindpangu import figures
from mindpangu.config.run_folder import RunFolder
from mindpangu.train import report as report_module
from mindpangu.train.report import plot_loss, write_report
from tests.train.step_records import step_record

DOMAINS = ["_hidden", "中文", "zh", "$x_{"]


def record(step, loss, seconds, skipped=None):
    return step_record(
        step,
        loss=loss,
        per_step_time=seconds,
        tokens_per_s=1000.0 * step,
        imbalance=float(step),
        peak_memory=0.5 * step,
        domains={"zh": loss},
        skipped=skipped,
    )


def write_metrics(run, records):
    run.metrics.write_text("".join(json.dumps(asdict(each)) + "\n" for each in records))


def finished_run(folder):
    """Writes the metrics of a run of three steps."""
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    write_metrics(
        run, [replace(record(step, 2.0, 1.5), domains=dict.fromkeys(DOMAINS, 2.0 + step)) for step in (1, 2, 3)]
    )
    return run


def report_with_sample(folder, **sample):
    """Returns the report of a run that has generated a sample."""
    run = finished_run(folder)
    run.samples.write_text(json.dumps({"step": 3, "samples": [sample]}), "utf-8")
    write_report(run)
    return run.report.read_text("utf-8")


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


def test_the_plot_has_the_losses_of_the_steps_that_were_taken_and_their_average(tmp_path, monkeypatch):
    """The average of 4, 4, 8: a loss counts 0.8 times as much as the next."""
    figure = Figure()
    monkeypatch.setattr(report_module, "write_optional_figure", lambda path, size, draw: draw(figure))
    losses = [4.0, 4.0, 99.0, 8.0]
    records = [asdict(record(step, loss, 1.0)) for step, loss in enumerate(losses, 1)]
    records[2]["skipped"] = "loss is above its limit"

    plot_loss(records, tmp_path / "run" / "loss.png")

    dots, average = figure.axes[0].lines
    assert dots.get_xydata().tolist() == [[1, 4], [2, 4], [4, 8]]
    assert average.get_xdata().tolist() == [1, 2, 4]
    assert average.get_ydata() == pytest.approx([4, 4, (0.64 * 4 + 0.8 * 4 + 8) / (0.64 + 0.8 + 1)])


def test_a_plot_that_fails_leaves_a_complete_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "_show_literally", lambda texts: 1 / 0)
    run = finished_run(tmp_path / "run")

    write_report(run)

    assert "loss.png could not be drawn: ZeroDivisionError" in capsys.readouterr().out
    report = run.report.read_text("utf-8")
    assert "loss.png" not in report
    assert "| steps | 3 |" in report


def test_control_characters_in_samples_are_escaped(tmp_path):
    report = report_with_sample(tmp_path / "run", domain="zh", prompt="a\x1b[2J", continuation="\u202eb\n\tc")

    assert "a\\x1b[2J⟶\\u202eb\n\tc" in report


def test_the_report_of_a_run_without_files_is_its_name(tmp_path):
    run = RunFolder(tmp_path)

    write_report(run)

    assert run.report.read_text() == f"# {tmp_path.name}\n"
    assert not run.loss_plot.exists()


def test_the_report_has_the_training_the_heldout_text_and_the_samples(tmp_path):
    run = RunFolder(tmp_path)
    records = [record(1, 6.0, 9.0), record(2, 5.0, 2.0), record(3, 4.5, 0.25), record(4, 4.25, 0.5)]
    records.append(record(5, 99.0, 7.0, skipped="loss is above its limit"))
    write_metrics(run, records)
    heldout = {
        "domain": "zh",
        "tokens": 1234,
        "loss": 3.0,
        "unigram_loss": 4.4,
        "loss_as": {"en": 3.8, "code": 4.0},
        "perplexity": 20.04,
        "unigram_perplexity": 80.0,
        "ratio": 0.2505,
        "perplexity_as": {"en": 44.4, "code": 55.5},
    }
    alone = heldout | {"domain": "en", "loss_as": {}, "perplexity_as": {}}
    run.evaluation.write_text(json.dumps({"step": 4, "domains": [heldout, alone]}))
    run.samples.write_text(
        json.dumps({"step": 4, "samples": [{"domain": "zh", "prompt": "打开", "continuation": "窗口"}]})
    )

    write_report(run)

    # medians and the imbalance leave out the first two steps, which compile, and the skipped one
    assert (
        run.report.read_text("utf-8")
        == f"""# {tmp_path.name}

## Training

![loss](loss.png)

|  | value |
| --- | --- |
| steps | 5 |
| last loss | 4.2500 |
| median step | 375 ms |
| median tokens/s | 3,500 |
| first step, compilation included | 9.0 s |
| peak memory | 2.50 GiB |
| expert imbalance (max/mean) | 3.50 |
| skipped steps | 1 |

## Held-out text (step 4)

| domain | tokens | perplexity | unigram | ratio | routed as another domain |
| --- | --- | --- | --- | --- | --- |
| zh | 1,234 | 20.0 | 80.0 | 0.251 | en 44, code 56 |
| en | 1,234 | 20.0 | 80.0 | 0.251 | – |

## Continuations

**zh**

```text
打开⟶窗口
```
"""
    )
    assert run.loss_plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ((9.0,), ("| median step | 9000 ms |", "| first step, compilation included | 9.0 s |", "| steps | 1 |")),
        ((9.0, 1.0), ("| median step | 5000 ms |", "| first step, compilation included | 9.0 s |", "| steps | 2 |")),
        ((9.0, 5.0, 1.0), ("| median step | 1000 ms |", "| median tokens/s | 3,000 |", "| peak memory | 1.50 GiB |")),
        ((None, 1.0), ("| median step | 1000 ms |", "| first step, compilation included | 1.0 s |")),
        ((None,), ("| median step | nan ms |", "| first step, compilation included | nan s |")),
    ],
)
def test_only_more_than_two_steps_leave_out_those_that_compile(tmp_path, monkeypatch, seconds, rows):
    monkeypatch.setattr(report_module, "plot_loss", lambda records, path: None)
    run = RunFolder(tmp_path)
    write_metrics(run, [record(step, 2.0, value) for step, value in enumerate(seconds, 1)])

    write_report(run)

    report = run.report.read_text()
    for row in (*rows, "| skipped steps | 0 |"):
        assert row in report


@pytest.mark.parametrize(
    "content", ["", "[]", '{"step": 4}', '{"step": 4, "domains": []}', '{"step": 4, "domains": [], "samples": []}']
)
def test_empty_or_damaged_results_are_left_out(tmp_path, content):
    run = RunFolder(tmp_path)
    for path in (run.evaluation, run.samples):
        path.write_text(content)

    write_report(run)

    assert run.report.read_text() == f"# {tmp_path.name}\n"


def test_a_training_whose_steps_were_all_skipped_is_left_out_of_the_report(tmp_path):
    run = RunFolder(tmp_path)
    write_metrics(run, [record(1, 6.0, 9.0, skipped="loss is nan")])

    write_report(run)

    assert run.report.read_text() == f"# {tmp_path.name}\n"


def test_a_sample_with_backticks_stays_in_its_block(tmp_path):
    continuation = "````\n# a heading\n```"

    report = report_with_sample(tmp_path / "run", domain="code", prompt="```python\n", continuation=continuation)

    assert f"`````text\n```python\n⟶{continuation}\n`````\n" in report


@pytest.mark.parametrize("field", ["perplexity", "ratio", "domain", "perplexity_as"])
def test_an_evaluation_that_no_verb_has_written_is_left_out(tmp_path, field):
    run = finished_run(tmp_path / "run")
    losses = dict.fromkeys(("loss", "unigram_loss", "perplexity", "unigram_perplexity", "ratio"), 1.5)
    heldout = losses | {"domain": "zh", "tokens": 3, "loss_as": {}, "perplexity_as": {}}
    hostile = {"domain": "zh |\n\n# a heading", "perplexity_as": {"zh |\n": 1.0}}.get(field, 10**390)

    for value, is_shown in ((heldout[field], True), (hostile, False)):
        run.evaluation.write_text(json.dumps({"step": 3, "domains": [heldout | {field: value}]}))
        write_report(run)
        assert ("Held-out text" in run.report.read_text("utf-8")) == is_shown
