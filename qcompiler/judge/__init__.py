"""The one judge: what is compared, how far two results are apart, and what that means."""
