"""Try a change: text before and after it. Experiments that measure are in the room above."""
