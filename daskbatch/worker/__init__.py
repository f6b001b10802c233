"""What happens on a worker."""
