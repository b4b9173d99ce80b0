"""What a network's predictions are worth: errors over data sets, by distance and edge, over time, and in metres."""
