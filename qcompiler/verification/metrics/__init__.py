"""What is made of a metric: halves to choose by and to judge by."""
