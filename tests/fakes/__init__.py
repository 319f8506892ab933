"""Stand-ins that pass the same contract suite as what they stand for. Never shipped."""
