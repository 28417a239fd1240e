"""Trials: short trainings of many configurations, each in its own run folder and process. The searches build on them.

trials = Trials(folder, base_config)                # `trial.py`: prepares tokenizer and data once for all trials
trial = trials.add("depth004_…", config, decode=True)
run_trials([trial, …], processes=2)                 # `pool.py`: skips finished trials, reports failed ones
trial.result()                                      # written by `process.py`: held-out loss, speeds (`measures.py`)
"""
