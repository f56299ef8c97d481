"""Fine-tuning: losses, what is trained, the step, and the loop around it."""
