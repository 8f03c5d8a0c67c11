"""What goes into the virtual environment: requirements, resolution, builds, checks."""
