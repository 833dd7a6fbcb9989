"""The page: one HTML file that needs no network, of runs and all that compares them.

`content` is what Python computed, by the mechanisms of the tables; `document` puts it into the page with the scripts
that sort, filter and draw it; `server` shows it while runs go on.
"""
