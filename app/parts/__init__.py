"""Parts of pages: each shows one block of a page. Parts ask the query layer and know no page."""
