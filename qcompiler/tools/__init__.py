"""What looks at models and does not compile: verify, inspect, sensitivity, bench."""
