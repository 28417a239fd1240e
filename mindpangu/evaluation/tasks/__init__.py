"""The tasks, one file each. `mindpangu.evaluation.task` finds them."""
