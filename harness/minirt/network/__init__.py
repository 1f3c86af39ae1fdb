"""Networks of pods, by the plugins of the Container Network Interface."""
