"""Where a pair may stand: structural rules, without running anything."""
