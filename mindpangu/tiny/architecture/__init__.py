"""The search for an architecture.

`points.py` says which ones a budget of parameters allows and draws a sample, `search.py` trains and measures each of
them (`tiny.trials`), `ranking.py` has the statistics, `report.py` the table and the picture.
"""
