"""`srl report`: a run, or two, as one self-contained HTML file."""
