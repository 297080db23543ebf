"""What people read about a compilation; made from the manifest alone."""
