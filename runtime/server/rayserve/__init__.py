"""The release's models on Ray, where the release carries it: replicas under Ray Serve, nodes, and bulk embedding."""
