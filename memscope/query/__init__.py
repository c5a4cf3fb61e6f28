"""Questions about a recording, answered as tables. Command line, app, reports and exports ask here. No torch."""
