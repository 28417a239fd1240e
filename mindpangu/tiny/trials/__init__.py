"""Short trainings of many configurations, each in a run folder and a process of its own: what the searches stand on.

trials = Trials(folder, base_config)                # `trial.py`: prepares tokenizer and data once for all
trial = trials.add("depth004_…", config, decode=True)
run_trials([trial, …], processes=2)                 # `pool.py`: skips what is done, names what failed
trial.result()                                      # what `process.py` wrote: held-out loss, speeds (`measures.py`)
"""
