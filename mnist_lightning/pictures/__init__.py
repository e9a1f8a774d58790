"""Digits in pictures, file by file in the order in which a picture passes them.

- ``read``: a picture file becomes pixels.
- ``paper``: grey levels, the sheet on the table, and the page upright.
- ``ink``: how strongly each pixel is inked.
- ``marks``: ink that hangs together; ``detector`` says which digit a mark is, or that it is none.
- ``ruled_lines``: lines and frames are removed from what is no digit.
- ``digits``: pieces are joined, digits that touch are cut apart, and all are put in reading order.
  Its ``find_digits`` calls all of the above.
- ``recognize``: a network reads the digits.
- ``write``: a table, copies of the pictures, and a page.
"""
