"""What the app draws of a whole bank: points of the map, linked histograms. No torch, no streamlit."""
