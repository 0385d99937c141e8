"""What is the collector? OTLP comes in, hops are kept, verdicts go out; `serve` starts it."""
