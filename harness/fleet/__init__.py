"""Other machines: boxes and virtual machines to hold trials on, hosts behind ssh, and how a trial gets there and back."""
