"""Draws the graph of a run: as SVG, as PNG, or in the language of Graphviz.

`picture` says what is drawn, `collapse` groups tasks of one name, `layout` says where, and `svg`,
`png` and `dot` draw.
"""
