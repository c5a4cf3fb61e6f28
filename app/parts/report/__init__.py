"""The report of a recording: made once, kept beside the recording, shown and downloaded."""
