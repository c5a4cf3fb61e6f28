"""Parts of pages: what a page shows in one place. Parts ask the query layer and know no page."""
