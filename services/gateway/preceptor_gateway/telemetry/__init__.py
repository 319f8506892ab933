"""What the gateway tells about its work: series, traces, log fields. `tracing` is imported only where traces are on."""
