"""The report of a run: what it says of the files in the run's folder."""

import json
from dataclasses import asdict

from mindpangu.config.run_folder import RunFolder
from mindpangu.train.callbacks import StepRecord
from mindpangu.train.report import write_report


def record(step, loss, seconds, skipped=None):
    return StepRecord(
        step=step,
        loss=loss,
        lr=0.1,
        global_norm=1.0,
        overflow=False,
        loss_scale=1.0,
        per_step_time=seconds,
        tokens_per_s=1000.0 * step,
        imbalance=float(step),
        experts_activated=2,
        bytes_to_device=0,
        bytes_to_host=0,
        lookup_s=0.0,
        update_s=0.0,
        wait_s=0.0,
        peak_memory=0.5 * step,
        domains={"zh": loss},
        skipped=skipped,
    )


def write_metrics(run, records):
    run.metrics.write_text("".join(json.dumps(asdict(each)) + "\n" for each in records))


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
        "perplexity": 20.04,
        "unigram_perplexity": 80.0,
        "ratio": 0.2505,
        "perplexity_as": {"en": 44.4, "code": 55.5},
    }
    alone = heldout | {"domain": "en", "perplexity_as": {}}
    run.evaluation.write_text(json.dumps({"step": 4, "domains": [heldout, alone]}))
    run.samples.write_text(json.dumps({"samples": [{"domain": "zh", "prompt": "打开", "continuation": "窗口"}]}))

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


def test_steps_that_were_all_skipped_are_no_training(tmp_path):
    run = RunFolder(tmp_path)
    write_metrics(run, [record(1, 6.0, 9.0, skipped="loss is nan")])

    write_report(run)

    assert run.report.read_text() == f"# {tmp_path.name}\n"
