"""Two recordings against one another: numbers, words and figures. No torch."""
