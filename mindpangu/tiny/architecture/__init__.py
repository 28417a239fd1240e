"""Architecture search.

`points.py` enumerates the architectures that fit a parameter budget and draws a sample, `search.py` trains and measures
each of them (`tiny.trials`), `ranking.py` has the statistics, and `report.py` the table and the plot.
"""
