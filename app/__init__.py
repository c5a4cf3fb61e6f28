"""The Streamlit app: thin pages over ``memscope.query.recording``."""
