"""The OCR demonstration: `make demo`; tests share how packages are fetched and lines are drawn."""
