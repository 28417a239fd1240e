"""Random Routed Experts: a token's expert is looked up, not learned (PanGu-Σ, arXiv 2303.10845).

Routing has two levels. The sample's domain selects a group of experts. Inside the group, a fixed table maps RRE layer
and token id to an expert. Every layer and domain has its own table, drawn independently:

    table = RoutingTable.build(domains, {"zh": counts_V, "en": counts_V}, num_layers=2, routing=config.routing)
    index_T = table.array(layer=0, domain_name="zh")[tokens_T]   # expert inside zh's group, 0 … 15
    expert_T = group_start["zh"] + index_T                       # expert among all experts of the layer

A table stores each expert's index inside its group, so adding or removing a domain leaves all others untouched. Since
routing needs only token ids, the load of every expert on a corpus is known before training (`compute_statistics`). The
`balanced` assignment relies on this.
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
