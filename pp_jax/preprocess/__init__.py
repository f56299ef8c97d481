"""What happens to an image before SAM sees it."""
