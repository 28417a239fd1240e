"""mindpangu: PanGu-Σ (Random Routed Experts, host-resident experts) and PanGu-π training on MindSpore."""

__version__ = "0.2.0.dev0"
