"""Random Routed Experts: which expert serves a token is looked up, not learned (PanGu-Σ, arXiv 2303.10845).

Routing has two levels. The sample's domain picks a group of experts; inside the group, a fixed table picks the
expert from the RRE layer and the token id. Each layer and each domain has a table of its own, drawn independently:

    table = RoutingTable.build(domains, {"zh": counts_V, "en": counts_V}, num_layers=2, routing=config.routing)
    index_T = table.array(layer=0, domain_name="zh")[tokens_T]   # expert inside zh's group, 0 … 15
    expert_T = group_start["zh"] + index_T                       # expert among all of the layer

A table names experts by their place in the group, so adding or removing a domain leaves all others untouched. And
since routing needs only token ids, the load of every expert on a corpus is known before training
(`compute_statistics`), which is what the `balanced` assignment makes use of.
"""

from mindpangu.routing.assignment import (
    assign_balanced,
    assign_layers,
    assign_random,
    assignment_rng,
    grouping_overlap,
    most_frequent_tokens,
)
from mindpangu.routing.plot import plot_load
from mindpangu.routing.statistics import (
    GroupLoad,
    HotToken,
    LoadStatistics,
    TextLoad,
    compute_statistics,
    count_tokens,
)
from mindpangu.routing.table import DomainTable, RoutingTable, table_file

__all__ = [
    "DomainTable",
    "GroupLoad",
    "HotToken",
    "LoadStatistics",
    "RoutingTable",
    "TextLoad",
    "assign_balanced",
    "assign_layers",
    "assign_random",
    "assignment_rng",
    "compute_statistics",
    "count_tokens",
    "grouping_overlap",
    "most_frequent_tokens",
    "plot_load",
    "table_file",
]
