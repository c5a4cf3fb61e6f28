"""The app's own components, one a file: what a page hands over as data, scripts in ``frontend`` draw."""
