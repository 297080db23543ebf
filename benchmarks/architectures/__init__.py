"""What people bring from Hugging Face: thirty architectures through qcompiler, a row each."""
