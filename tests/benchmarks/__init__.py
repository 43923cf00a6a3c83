"""Speed: `make bench`. Nothing here asserts a time; results are kept with their date, device, versions and commit."""
