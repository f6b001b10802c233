"""Writes the report of a run as one HTML file that needs no network.

`report_page` prepares what the template ``report.html.j2`` shows; `timeline_svg` draws the
tasks on their slots.
"""
