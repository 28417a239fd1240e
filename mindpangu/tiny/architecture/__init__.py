"""Architecture search.

`points.py` enumerates the architectures that fit a parameter budget and draws a sample, `search.py` trains and measures
each one (`tiny.trials`), `ranking.py` computes the statistics, and `report.py` makes the table and the plot.
"""
