"""What the user asked for, as frozen, validated records."""
