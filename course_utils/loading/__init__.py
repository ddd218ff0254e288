"""Where models come from: the built-in one, files and hubs, devices."""
