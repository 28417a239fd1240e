"""Many processes: who shares what (`mesh`), what they compute together (`collectives`, `data_parallel`), and how they
meet (`processes`)."""
