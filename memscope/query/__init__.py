"""Questions about a recording, answered as tables, for command line, app, reports and exports. No torch."""
