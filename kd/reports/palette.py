"""Colours and marks, distinct for the colour-blind, too, of figures in files and on the page."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vPX*<>"  # as matplotlib names them
DASHES = ("-", "--", "-.", ":")
# cividis from its light end (Nuñez, Anderton and Renslow 2018), in which heat maps are drawn: dark is better.
SHADES = (
    *("#fee838", "#ddc858", "#bbad6d", "#9a9376", "#7c7b78"),
    *("#60646f", "#424e6c", "#18376f", "#00224e"),
)
