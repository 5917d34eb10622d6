"""Files: atomic writes, tables, images, folders of masks, and their inspection."""
