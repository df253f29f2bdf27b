"""Writes one run or two as one self-contained HTML file: `srl report`."""
