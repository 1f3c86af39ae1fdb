"""Pure data: what is tried, in what order, and what a result is. Nothing here reads or writes anything."""
