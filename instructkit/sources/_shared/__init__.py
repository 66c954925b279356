"""What several releases have in common."""
