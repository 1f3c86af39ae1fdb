"""The test images, the same bytes on every machine, and the small registry that serves them."""
