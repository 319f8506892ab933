"""Stage plan: what a training will cost and whether it can be served. Start at `forecast`.

`bases` finds a configuration, `parameters` counts, `workload` measures the records, `memory` and `probe` say what it
takes, `servability` what the engine needs, `tables` lays it out.
"""
