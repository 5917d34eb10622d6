"""Files: atomic writes, CSV tables, images, folders of masks, and the inspection of datasets."""
