"""How long a network takes and how much memory: measured side by side, estimated from data sheets."""
