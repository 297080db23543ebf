"""Which producers can take a division of channels, and how it is done."""
