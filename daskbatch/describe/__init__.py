"""Records of what the user asked for: frozen, validated, and independent of tasks and clusters."""
